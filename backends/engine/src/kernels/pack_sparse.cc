#include "pack_sparse.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace obert {
namespace {

constexpr int kMost = 128;  // of positive values of a pair together, and of negative ones

struct Block {
  uint8_t index;
  int8_t value[kBlock];
  // Sums of positive and of negated negative values of the two pairs, and the largest of the four.
  uint8_t load[4];
  uint8_t largest;
};

// Takes as much of the pair out of `rest` as a block may hold.
void take_pair(int16_t* rest, int8_t* taken, uint8_t* load) {
  int above = kMost, below = -kMost;
  for (int i = 0; i < 2; ++i) {
    const int v = rest[i] > 0 ? std::min({static_cast<int>(rest[i]), above, 127})
                              : std::max(static_cast<int>(rest[i]), below);
    (v > 0 ? above : below) -= v;
    taken[i] = static_cast<int8_t>(v);
    rest[i] = static_cast<int16_t>(rest[i] - v);
  }
  load[0] = static_cast<uint8_t>(kMost - above);
  load[1] = static_cast<uint8_t>(kMost + below);
}

bool any(const int16_t* block) {
  uint64_t bits;
  std::memcpy(&bits, block, sizeof bits);
  return bits != 0;
}

// What most blocks are: no pair can break the rule.
bool take_small(const int16_t* weights, Block& b) {
  bool small = true;
  for (int i = 0; i < kBlock; ++i) small &= weights[i] <= kMost / 2 && weights[i] >= -kMost / 2;
  if (!small) return false;
  for (int i = 0; i < kBlock; ++i) b.value[i] = static_cast<int8_t>(weights[i]);
  for (int i = 0; i < kBlock; i += 2) {
    const int u = weights[i], v = weights[i + 1];
    b.load[i] = static_cast<uint8_t>(std::max(u, 0) + std::max(v, 0));
    b.load[i + 1] = static_cast<uint8_t>(std::max(-u, 0) + std::max(-v, 0));
  }
  return true;
}

// What a byte holds, by value.
void take_bytes(int16_t* rest, int8_t* taken) {
  for (int i = 0; i < kBlock; ++i) {
    taken[i] = static_cast<int8_t>(std::clamp<int>(rest[i], -128, 127));
    rest[i] = static_cast<int16_t>(rest[i] - taken[i]);
  }
}

void split_block(const int16_t* weights, int count, int index, bool saturates, std::vector<Block>& blocks) {
  int16_t rest[kBlock] = {};
  if (count == kBlock) std::memcpy(rest, weights, sizeof rest);
  else std::copy(weights, weights + count, rest);
  while (any(rest)) {
    Block b;
    b.index = static_cast<uint8_t>(index);
    if (!saturates) {
      take_bytes(rest, b.value);
      blocks.push_back(b);
      continue;
    }
    const bool small = take_small(rest, b);
    if (!small) {
      take_pair(rest, b.value, b.load);
      take_pair(rest + 2, b.value + 2, b.load + 2);
    }
    b.largest = std::max(std::max(b.load[0], b.load[1]), std::max(b.load[2], b.load[3]));
    blocks.push_back(b);
    if (small) return;
  }
}

// Whether the rule holds for both together, all four sums at once: none is above 2 * kMost, so that a sum too large, and
// no other, carries from 255 - kMost on into the ninth bit.
bool fit(const Block& a, const Block& b) {
  constexpr uint32_t kEven = 0x00ff00ff, kRest = (255 - kMost) * 0x00010001u, kNinth = 0x01000100;
  uint32_t x, y;
  std::memcpy(&x, a.load, sizeof x);
  std::memcpy(&y, b.load, sizeof y);
  const uint32_t even = (x & kEven) + (y & kEven) + kRest, odd = (x >> 8 & kEven) + (y >> 8 & kEven) + kRest;
  return !((even | odd) & kNinth);
}

// Forms couples; keeps its memory between calls.
class Matchmaker {
 public:
  // Couples first, the rest behind them; returns how many couples. The largest block takes the largest partner that fits:
  // a smaller one would be the only partner of another. A full matching finds 2% more couples of a row that keeps a
  // fifth of its blocks.
  int form_couples(std::vector<Block>& blocks) {
    sort(blocks);
    couples_.clear();
    single_.clear();
    for (size_t first = 0; first < sorted_.size();) {
      const Block large = sorted_[first++];
      size_t partner = first_tried(large, first);
      while (partner < sorted_.size() && !fit(large, sorted_[partner])) ++partner;
      if (partner == sorted_.size()) {
        single_.push_back(large);
        continue;
      }
      couples_.push_back(large);
      couples_.push_back(sorted_[partner]);
      sorted_.erase(sorted_.begin() + static_cast<std::ptrdiff_t>(partner));
    }
    std::copy(single_.begin(), single_.end(), std::copy(couples_.begin(), couples_.end(), blocks.begin()));
    return static_cast<int>(couples_.size() / 2);
  }

 private:
  // By counting, the largest first.
  void sort(const std::vector<Block>& blocks) {
    uint16_t place[kMost + 2] = {};
    for (const Block& b : blocks) ++place[kMost - b.largest + 1];
    for (int i = 1; i <= kMost; ++i) place[i] = static_cast<uint16_t>(place[i] + place[i - 1]);
    sorted_.resize(blocks.size());
    for (const Block& b : blocks) sorted_[place[kMost - b.largest]++] = b;
  }

  // Every block fits whose largest sum leaves room for that of `large`; a few before those are tried too, from `first` on.
  size_t first_tried(const Block& large, size_t first) const {
    constexpr std::ptrdiff_t kTries = 32;
    const auto begin = sorted_.begin() + static_cast<std::ptrdiff_t>(first);
    const auto sure = std::partition_point(begin, sorted_.end(),
                                           [&](const Block& b) { return b.largest + large.largest > kMost; });
    return static_cast<size_t>(sure - std::min(kTries, sure - begin) - sorted_.begin());
  }

  std::vector<Block> sorted_, couples_, single_;
};

// Makes it all blocks 0 .. blocks in order, zeros among them, where few are missing and none is there twice.
bool make_whole(std::vector<Block>& kept, int blocks) {
  if (static_cast<double>(kept.size()) < kWholeShare * blocks) return false;
  for (size_t i = 1; i < kept.size(); ++i)
    if (kept[i].index <= kept[i - 1].index) return false;
  std::vector<Block> all(static_cast<size_t>(blocks), Block{});
  for (size_t i = 0; i < all.size(); ++i) all[i].index = static_cast<uint8_t>(i);
  for (const Block& b : kept) all[b.index] = b;
  kept.swap(all);
  return true;
}

// Blocks of zeros where the last block is, whose activations are at hand.
void fill_up(std::vector<Block>& kept, int multiple) {
  Block zeros{};
  if (!kept.empty()) zeros.index = kept.back().index;
  while (kept.size() % static_cast<size_t>(multiple)) kept.push_back(zeros);
}

// What a row keeps of a chunk.
struct Row {
  std::vector<Block> blocks;
  int couples = 0;
  bool whole = false;

  RowBlocks counts() const {
    return {static_cast<uint16_t>(couples), static_cast<uint16_t>(blocks.size() - 2 * static_cast<size_t>(couples))};
  }
};

void store(const std::vector<Block>& blocks, SparseInt8Storage& s) {
  const size_t at = s.index.size();
  s.index.resize(at + blocks.size());
  s.value.resize((at + blocks.size()) * kBlock);
  for (size_t i = 0; i < blocks.size(); ++i) {
    s.index[at + i] = blocks[i].index;
    std::memcpy(s.value.data() + (at + i) * kBlock, blocks[i].value, kBlock);
  }
}

double density(const int16_t* weights, size_t count) {
  size_t kept = 0;
  for (size_t i = 0; i < count; ++i) kept += weights[i] != 0;
  return count ? static_cast<double>(kept) / static_cast<double>(count) : 0;
}

// The rows 0 .. count of a window in the order of size(row).
template <class Size>
void put_in_order(std::vector<uint8_t>& order, int count, const Size& size) {
  std::iota(order.begin(), order.begin() + count, uint8_t{0});
  std::stable_sort(order.begin(), order.begin() + count, [&](int a, int b) { return size(a) < size(b); });
}

// Chunks of about the same size, none above what is asked for and an index holds.
int chunk_size(int blocks, int most) {
  most = std::min(most, kChunkBlocks);
  const int chunks = std::max(1, (blocks + most - 1) / most);
  return std::max(1, (blocks + chunks - 1) / chunks);
}

}  // namespace

SparseInt8Storage pack_sparse_int8(const int16_t* weights, int rows, int inputs, const Packing& packing) {
  SparseInt8Storage s;
  const int blocks = (inputs + kBlock - 1) / kBlock;
  s.rows = rows;
  if (packing.tiles) {
    s.tiles = pack_tiles(weights, rows, inputs);
    if (tiles_pay(s.tiles.place.size(), s.tiles.kept)) return s;
    s.tiles = {};
  }
  const double share = density(weights, static_cast<size_t>(rows) * inputs);
  const bool sparse = share < packing.sparse_below;
  const size_t expected =
      static_cast<size_t>(rows) * blocks / 16 * static_cast<size_t>(1 + std::min(15., share * 20));
  s.index.reserve(expected);
  s.value.reserve(expected * kBlock);
  s.chunk_blocks = chunk_size(blocks, sparse ? packing.sparse_chunk : packing.dense_chunk);
  s.chunks = std::max(1, (blocks + s.chunk_blocks - 1) / s.chunk_blocks);
  s.start.reserve(static_cast<size_t>(s.chunks) * rows + 1);
  const int window = packing.fill ? kRowWindow : 1;
  std::vector<Row> kept(static_cast<size_t>(window));   // by row of a window
  std::vector<uint8_t> order(static_cast<size_t>(window), 0);
  Matchmaker matchmaker;
  for (int c = 0; c < s.chunks; ++c) {
    const int begin = c * s.chunk_blocks, end = std::min(blocks, begin + s.chunk_blocks);
    for (int first = 0; first < rows; first += window) {
      const int count = std::min(window, rows - first);
      for (int r = 0; r < count; ++r) {
        const int16_t* row = weights + static_cast<size_t>(first + r) * inputs;
        std::vector<Block>& list = kept[r].blocks;
        list.clear();
        for (int b = begin; b < end; ++b)
          split_block(row + b * kBlock, std::min(kBlock, inputs - b * kBlock), b - begin, packing.saturates, list);
        kept[r].whole = packing.whole && make_whole(list, end - begin);
        kept[r].couples = packing.saturates ? matchmaker.form_couples(list) : 0;
        if (packing.fill && !kept[r].whole) fill_up(list, packing.fill);
      }
      put_in_order(order, count, [&](int r) { return std::pair(kept[r].couples, kept[r].blocks.size()); });
      for (int p = 0; p < count; ++p) {
        const Row& row = kept[order[p]];
        s.start.push_back(static_cast<uint32_t>(s.index.size()));
        if (packing.saturates) s.row_blocks.push_back(row.counts());
        if (packing.whole) s.whole.push_back(row.whole ? 1 : 0);
        if (packing.fill) s.order.push_back(order[p]);
        store(row.blocks, s);
      }
    }
  }
  s.start.push_back(static_cast<uint32_t>(s.index.size()));
  return s;
}

SparseFloatStorage pack_sparse_float(const float* weights, int rows, int inputs, const Packing& packing) {
  SparseFloatStorage s;
  s.rows = rows;
  const auto row_of = [&](int row) { return weights + static_cast<size_t>(row) * inputs; };
  s.chunk_inputs = chunk_size(inputs, packing.float_chunk);
  s.chunks = std::max(1, (inputs + s.chunk_inputs - 1) / s.chunk_inputs);
  const int window = packing.fill ? kRowWindow : 1;
  std::vector<uint8_t> order(static_cast<size_t>(window), 0);
  std::vector<std::ptrdiff_t> kept(static_cast<size_t>(window));   // by row of a window
  for (int c = 0; c < s.chunks; ++c) {
    const int begin = c * s.chunk_inputs, end = std::min(inputs, begin + s.chunk_inputs);
    for (int first = 0; first < rows; first += window) {
      const int count = std::min(window, rows - first);
      for (int r = 0; r < count; ++r) {
        const float* row = row_of(first + r);
        kept[r] = end - begin - std::count(row + begin, row + end, 0.f);
      }
      put_in_order(order, count, [&](int r) { return kept[r]; });
      for (int p = 0; p < count; ++p) {
        s.start.push_back(static_cast<uint32_t>(s.index.size()));
        if (packing.fill) s.order.push_back(order[p]);
        const float* row = row_of(first + order[p]);
        for (int i = begin; i < end; ++i) {
          if (row[i] == 0.f) continue;
          s.index.push_back(static_cast<uint8_t>(i - begin));
          s.value.push_back(row[i]);
        }
      }
    }
  }
  s.start.push_back(static_cast<uint32_t>(s.index.size()));
  return s;
}

}  // namespace obert
