#include "pack_tiles.h"

#include <algorithm>
#include <cstring>

namespace obert {
namespace {

// Six tiles of inputs are 24 KB of a panel: they stay in a first-level cache of 48 KB while the strips
// pass, beside the tiles that are being expanded.
constexpr int kChunkTiles = 6;
// Blocks from which on a tile is kept whole: a third more bytes at most, and nothing to expand.
constexpr size_t kWholeFrom = 192;
// Measured on a Xeon of family 6 model 207 with 64 tokens: a tile of 20% takes about 115 cycles, a
// block by vpdpbusd 3 to 4, and at 12% (32 blocks a tile) the two are level.
constexpr size_t kBlocksToPay = 32;

class Packer {
 public:
  Packer(const int16_t* weights, int rows, int inputs) : weights_(weights), rows_(rows), inputs_(inputs) {}

  TilesInt8Storage run() {
    const int tiles = std::max(1, (blocks() + kTileBlocks - 1) / kTileBlocks);
    s_.rows = rows_;
    s_.blocks = blocks();
    s_.chunks = (tiles + kChunkTiles - 1) / kChunkTiles;
    s_.chunk_tiles = (tiles + s_.chunks - 1) / s_.chunks;
    s_.chunks = (tiles + s_.chunk_tiles - 1) / s_.chunk_tiles;
    for (int c = 0; c < s_.chunks; ++c)
      for (int row = 0; row < rows_; row += kTileRows) {
        s_.start.push_back(static_cast<uint32_t>(s_.place.size()));
        s_.offset.push_back(static_cast<uint32_t>(dwords_));
        for (int t = c * s_.chunk_tiles; t < std::min(tiles, (c + 1) * s_.chunk_tiles); ++t)
          pack(row, t, t - c * s_.chunk_tiles);
      }
    s_.start.push_back(static_cast<uint32_t>(s_.place.size()));
    s_.stream.shrink_to_fit();
    return std::move(s_);
  }

 private:
  int blocks() const { return (inputs_ + kBlock - 1) / kBlock; }

  void pack(int row, int tile, int place) {
    alignas(64) int16_t rest[kTileRows][kTileBlocks * kBlock] = {};
    const int first = tile * kTileBlocks * kBlock, count = std::min(kTileBlocks * kBlock, inputs_ - first);
    for (int r = 0; r < std::min(kTileRows, rows_ - row); ++r)
      std::memcpy(rest[r], weights_ + static_cast<size_t>(row + r) * inputs_ + first,
                  static_cast<size_t>(std::max(0, count)) * sizeof(int16_t));
    while (take(rest, place)) {
    }
  }

  // Moves what bytes can hold into one tile. True when something is left.
  bool take(int16_t (&rest)[kTileRows][kTileBlocks * kBlock], int place) {
    uint16_t masks[kTileRows] = {};
    uint32_t kept[kTileDwords], whole[kTileRows][kTileBlocks] = {};
    size_t count = 0;
    bool left = false;
    for (int r = 0; r < kTileRows; ++r)
      for (int b = 0; b < kTileBlocks; ++b) {
        int16_t* from = rest[r] + b * kBlock;
        uint64_t bits;
        std::memcpy(&bits, from, sizeof bits);
        if (!bits) continue;
        int8_t bytes[kBlock];
        for (int i = 0; i < kBlock; ++i) {
          bytes[i] = static_cast<int8_t>(std::max(-128, std::min(127, static_cast<int>(from[i]))));
          from[i] = static_cast<int16_t>(from[i] - bytes[i]);
          left |= from[i] != 0;
        }
        std::memcpy(&kept[count], bytes, sizeof bytes);
        whole[r][b] = kept[count++];
        masks[r] = static_cast<uint16_t>(masks[r] | 1u << b);
      }
    if (count == 0) return false;
    s_.kept += count;
    if (count >= kWholeFrom) {
      dwords_ = (dwords_ + 15) / 16 * 16;
      append(whole, sizeof whole);
      place |= kWholeTile;
    } else {
      append(masks, sizeof masks);
      append(kept, count * sizeof(uint32_t));
    }
    s_.place.push_back(static_cast<uint16_t>(place));
    return left;
  }

  void append(const void* data, size_t bytes) {
    const size_t end = dwords_ + bytes / sizeof(uint32_t);
    s_.stream.resize((end + 15) / 16);
    std::memcpy(reinterpret_cast<uint32_t*>(s_.stream.data()) + dwords_, data, bytes);
    dwords_ = end;
  }

  const int16_t* weights_;
  int rows_, inputs_;
  TilesInt8Storage s_;
  size_t dwords_ = 0;
};

}  // namespace

TilesInt8Storage pack_tiles(const int16_t* weights, int rows, int inputs) {
  return Packer(weights, rows, inputs).run();
}

bool tiles_pay(size_t tiles, size_t kept) { return kept >= tiles * kBlocksToPay && kept > 0; }

}  // namespace obert
