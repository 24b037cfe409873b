// INT8 product with tiles: weights are the rows of one operand, activations, as layout.h has them, are
// the columns of the other. Include after tile_<how>.h and expand_<how>.h.
//
// A tile of weights is expanded from its masks into a ring in the first-level cache and multiplied
// with the four runs of 16 tokens of a panel. 4 registers hold sums, 2 weights, 2 activations. Bound by
// the multiplications, 16 cycles each, 64 a tile; beside them run 5 loads of tiles at 8 cycles, and 16
// rows to expand at 3 of the shuffle port.
#pragma once
#include <cstring>

#include "kernels.h"
#include "prefetch.h"
#include "tile_config.h"

namespace obert {
namespace {

// Between the stores that expand a tile and the load that reads it lie the instructions of this many
// tiles, more than the processor holds in flight: the load finds the tile in the cache and not in the
// store buffer.
constexpr uint32_t kAhead = 4;
constexpr uint32_t kRing = 8;
static_assert(kAhead < kRing && (kRing & (kRing - 1)) == 0, "a tile is not written over before it is read");

// Weights come from the last-level cache or from memory. Masks and blocks are asked for so far ahead, as many lines
// a tile as it takes at 80% zeros; tiles that are kept whole so many tiles ahead, into the second-level cache.
constexpr size_t kStreamAhead = 1024, kStreamLines = 4;
constexpr size_t kWholeAhead = 4 * kTileRows * kTileRowBytes;

constexpr size_t kPanelRow = kPanel * kBlock;            // bytes of a block of all tokens
constexpr size_t kRunBytes = kGroup * kBlock;            // of a block of 16 tokens
constexpr size_t kPanelTile = kTileBlocks * kPanelRow;   // of the inputs of a tile

// Goes through the tiles of some strips of a chunk, which follow one another in the stream.
struct Expander {
  uint32_t (*ring)[kTileDwords];
  const uint16_t* place;
  const uint32_t* stream;
  uint32_t next, end;
  const uint32_t* ready[kRing];   // tile t lies at ready[t % kRing]

  OBERT_INLINE void step() {
    if (next == end) return;
    const uint32_t slot = next % kRing;
    if (place[next++] & kWholeTile) {
      const uintptr_t at = (reinterpret_cast<uintptr_t>(stream) + 63) & ~uintptr_t{63};
      ready[slot] = reinterpret_cast<const uint32_t*>(at);
      stream = ready[slot] + kTileDwords;
      prefetch<2>(ready[slot], kWholeAhead, kTileRows * kTileRowBytes);
      return;
    }
    prefetch<3>(stream, kStreamAhead, kStreamLines * kPrefetchLine);
    const uint32_t* masks = stream;
    stream += kTileRows / 2;  // two masks a dword
    uint32_t* to = ring[slot];
    for (int r = 0; r < kTileRows; ++r) {
      uint16_t mask;
      std::memcpy(&mask, reinterpret_cast<const char*>(masks) + r * sizeof mask, sizeof mask);
      stream = expand_row(mask, stream, to + r * kTileBlocks);
    }
    ready[slot] = to;
  }
};

template <int Runs, int A>
OBERT_INLINE void multiply_tile(const uint32_t* weights, const uint8_t* x) {
  tile_load<A>(weights, kTileRowBytes);
  tile_load<6>(x, kPanelRow);
  tile_dot<0, A, 6>();
  if constexpr (Runs > 1) {
    tile_load<7>(x + kRunBytes, kPanelRow);
    tile_dot<1, A, 7>();
  }
  if constexpr (Runs > 2) {
    tile_load<6>(x + 2 * kRunBytes, kPanelRow);
    tile_dot<2, A, 6>();
  }
  if constexpr (Runs > 3) {
    tile_load<7>(x + 3 * kRunBytes, kPanelRow);
    tile_dot<3, A, 7>();
  }
}

template <int Runs>
OBERT_INLINE void zero_sums() {
  tile_zero<0>();
  if constexpr (Runs > 1) tile_zero<1>();
  if constexpr (Runs > 2) tile_zero<2>();
  if constexpr (Runs > 3) tile_zero<3>();
}
template <int Runs>
OBERT_INLINE void load_sums(const int32_t* from) {
  constexpr size_t kStride = kPanel * sizeof(int32_t);
  tile_load<0>(from, kStride);
  if constexpr (Runs > 1) tile_load<1>(from + kGroup, kStride);
  if constexpr (Runs > 2) tile_load<2>(from + 2 * kGroup, kStride);
  if constexpr (Runs > 3) tile_load<3>(from + 3 * kGroup, kStride);
}
template <int Runs>
OBERT_INLINE void store_sums(int32_t* to) {
  constexpr size_t kStride = kPanel * sizeof(int32_t);
  tile_store<0>(to, kStride);
  if constexpr (Runs > 1) tile_store<1>(to + kGroup, kStride);
  if constexpr (Runs > 2) tile_store<2>(to + 2 * kGroup, kStride);
  if constexpr (Runs > 3) tile_store<3>(to + 3 * kGroup, kStride);
}

template <int Runs>
void multiply_runs(const TilesInt8& w, const uint8_t* x, int row_begin, int row_end, int32_t* acc) {
  alignas(64) uint32_t ring[kRing][kTileDwords];
  alignas(64) uint8_t last[kPanelTile];            // the last inputs, and zeros for those that are missing
  alignas(64) int32_t edge[kTileRows * kPanel];    // sums of a strip that is wanted in part
  const int whole = w.blocks / kTileBlocks, rest = w.blocks % kTileBlocks;
  if (rest) {
    std::memcpy(last, x + static_cast<size_t>(whole) * kPanelTile, static_cast<size_t>(rest) * kPanelRow);
    std::memset(last + static_cast<size_t>(rest) * kPanelRow, 0, kPanelTile - static_cast<size_t>(rest) * kPanelRow);
  }
  if (row_begin % kTileRows || row_end % kTileRows) std::memset(edge, 0, sizeof edge);
  const int strips = (w.rows + kTileRows - 1) / kTileRows;
  const int first = row_begin / kTileRows, end = (row_end + kTileRows - 1) / kTileRows;
  // The registers are this thread's only from here to tile_release.
  tile_configure(kFullTiles);
  for (int c = 0; c < w.chunks; ++c) {
    const size_t at = static_cast<size_t>(c) * strips;
    const uint8_t* chunk = x + static_cast<size_t>(c) * w.chunk_tiles * kPanelTile;
    // Of the tile that is not whole, counted from the first of this chunk.
    const int short_place = rest ? whole - c * w.chunk_tiles : -1;
    Expander tiles{ring, w.place, w.stream + w.offset[at + first], w.start[at + first], w.start[at + end], {}};
    for (uint32_t i = 0; i < kAhead; ++i) tiles.step();
    uint32_t t = w.start[at + first];
    for (int s = first; s < end; ++s) {
      const int begin = s * kTileRows < row_begin ? row_begin : s * kTileRows;
      const int stop = (s + 1) * kTileRows > row_end ? row_end : (s + 1) * kTileRows;
      int32_t* out = acc + static_cast<size_t>(begin - row_begin) * kPanel;
      int32_t* wanted = edge + static_cast<size_t>(begin - s * kTileRows) * kPanel;
      const bool in_part = stop - begin < kTileRows;
      if (c == 0) {
        zero_sums<Runs>();
      } else {
        for (int r = 0; in_part && r < stop - begin; ++r)
          std::memcpy(wanted + r * kPanel, out + r * kPanel, sizeof(int32_t) * Runs * kGroup);
        load_sums<Runs>(in_part ? edge : out);
      }
      for (; t < w.start[at + s + 1]; ++t) {
        tiles.step();
        const int place = w.place[t] & ~kWholeTile;
        const uint8_t* from = place == short_place ? last : chunk + static_cast<size_t>(place) * kPanelTile;
        const uint32_t* weights = tiles.ready[t % kRing];
        // Two registers in turn: a load need not wait for the multiplications before it.
        if (t & 1) multiply_tile<Runs, 5>(weights, from);
        else multiply_tile<Runs, 4>(weights, from);
      }
      store_sums<Runs>(in_part ? edge : out);
      for (int r = 0; in_part && r < stop - begin; ++r)
        std::memcpy(out + r * kPanel, wanted + r * kPanel, sizeof(int32_t) * Runs * kGroup);
    }
  }
  tile_release();
}

void multiply_tiles(const TilesInt8& w, const uint8_t* x, int groups, int row_begin, int row_end, int32_t* acc) {
  if (row_begin >= row_end) return;
  switch (groups) {
    case 1:
      return multiply_runs<1>(w, x, row_begin, row_end, acc);
    case 2:
      return multiply_runs<2>(w, x, row_begin, row_end, acc);
    case 3:
      return multiply_runs<3>(w, x, row_begin, row_end, acc);
    default:
      return multiply_runs<4>(w, x, row_begin, row_end, acc);
  }
}

}  // namespace
}  // namespace obert
