#include "pack_sparse.h"

#include <algorithm>

namespace obert {
namespace {

// Takes as much of the pair out of `rest` as a block may hold: positive values up to 128 together
// (and 127 each), negative ones down to -128.
void take_pair(int16_t* rest, int8_t* taken) {
  int above = 128, below = -128;
  for (int i = 0; i < 2; ++i) {
    const int v = rest[i] > 0 ? std::min({static_cast<int>(rest[i]), above, 127}) : std::max(static_cast<int>(rest[i]), below);
    (v > 0 ? above : below) -= v;
    taken[i] = static_cast<int8_t>(v);
    rest[i] = static_cast<int16_t>(rest[i] - v);
  }
}

bool any(const int16_t* block) { return block[0] || block[1] || block[2] || block[3]; }

}  // namespace

SparseInt8Storage pack_sparse_int8(const int16_t* weights, int rows, int inputs) {
  SparseInt8Storage s;
  const int blocks = (inputs + kBlock - 1) / kBlock;
  s.rows = rows;
  s.chunk_blocks = kChunkBlocks;
  s.chunks = (blocks + kChunkBlocks - 1) / kChunkBlocks;
  s.start.reserve(static_cast<size_t>(s.chunks) * rows + 1);
  for (int c = 0; c < s.chunks; ++c) {
    const int begin = c * kChunkBlocks, end = std::min(blocks, begin + kChunkBlocks);
    for (int r = 0; r < rows; ++r) {
      s.start.push_back(static_cast<uint32_t>(s.index.size()));
      const int16_t* row = weights + static_cast<size_t>(r) * inputs;
      for (int b = begin; b < end; ++b) {
        int16_t rest[kBlock] = {};
        std::copy(row + b * kBlock, row + std::min(inputs, (b + 1) * kBlock), rest);
        while (any(rest)) {
          int8_t taken[kBlock];
          take_pair(rest, taken);
          take_pair(rest + 2, taken + 2);
          s.index.push_back(static_cast<uint16_t>(b - begin));
          s.value.insert(s.value.end(), taken, taken + kBlock);
        }
      }
    }
  }
  s.start.push_back(static_cast<uint32_t>(s.index.size()));
  return s;
}

SparseFloatStorage pack_sparse_float(const float* weights, int rows, int inputs) {
  SparseFloatStorage s;
  s.rows = rows;
  s.chunk_inputs = kChunkInputs;
  s.chunks = (inputs + kChunkInputs - 1) / kChunkInputs;
  s.start.reserve(static_cast<size_t>(s.chunks) * rows + 1);
  for (int c = 0; c < s.chunks; ++c) {
    const int begin = c * kChunkInputs, end = std::min(inputs, begin + kChunkInputs);
    for (int r = 0; r < rows; ++r) {
      s.start.push_back(static_cast<uint32_t>(s.index.size()));
      for (int i = begin; i < end; ++i) {
        const float w = weights[static_cast<size_t>(r) * inputs + i];
        if (w == 0.f) continue;
        s.index.push_back(static_cast<uint16_t>(i - begin));
        s.value.push_back(w);
      }
    }
  }
  s.start.push_back(static_cast<uint32_t>(s.index.size()));
  return s;
}

}  // namespace obert
