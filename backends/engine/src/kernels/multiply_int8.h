// Sparse INT8 product: every kept 4-block is one dword, broadcast and multiplied into four
// activations of each token of the panel, which are one dword too.
//
//   accumulators   64 tokens x int32 in registers, one row of the matrix at a time
//   block          vpbroadcastd [value], then for each vector of tokens:
//                    AVX2   vpmaddubsw, vpmaddwd with ones, vpaddd     (2 of 3 on the multiply pipes)
//                    VNNI   vpdpbusd                                   (1 multiply, 1 load)
//
// `dot4(acc, activations, weights)` comes from the instruction set's file. The chunk of activations
// (96 blocks x 256 bytes) stays in the first-level cache while all rows pass over it.
#pragma once

namespace obert {
namespace {

inline int32_t load_block(const int8_t* p) {
  int32_t w;
  std::memcpy(&w, p, sizeof w);
  return w;
}

template <int V> void multiply_int8_vectors(const SparseInt8& w, const uint8_t* x, int row_begin, int row_end, int32_t* acc) {
  // Few vectors leave the multiplier waiting for itself: neighbouring blocks go to sets of their own.
  constexpr int kSets = V * kLanes >= 64 ? 1 : V * kLanes >= 32 ? 2 : 4;
  for (int c = 0; c < w.chunks; ++c) {
    const int32_t* chunk = reinterpret_cast<const int32_t*>(x) + static_cast<size_t>(c) * w.chunk_blocks * kPanel;
    const uint32_t* start = w.start + static_cast<size_t>(c) * w.rows;
    for (int r = row_begin; r < row_end; ++r) {
      int32_t* out = acc + static_cast<size_t>(r - row_begin) * kPanel;
      I32 sum[kSets][V];
      for (int v = 0; v < V; ++v) sum[0][v] = c ? load(out + v * kLanes) : set(0);
      for (int s = 1; s < kSets; ++s)
        for (int v = 0; v < V; ++v) sum[s][v] = set(0);
      uint32_t b = start[r];
      const uint32_t end = start[r + 1];
      for (; b + kSets <= end; b += kSets) {
        for (int s = 0; s < kSets; ++s) {
          const int32_t* row = chunk + static_cast<size_t>(w.index[b + s]) * kPanel;
          const I32 weights = set(load_block(w.value + static_cast<size_t>(b + s) * kBlock));
          for (int v = 0; v < V; ++v) sum[s][v] = dot4(sum[s][v], load(row + v * kLanes), weights);
        }
      }
      for (; b < end; ++b) {
        const int32_t* row = chunk + static_cast<size_t>(w.index[b]) * kPanel;
        const I32 weights = set(load_block(w.value + static_cast<size_t>(b) * kBlock));
        for (int v = 0; v < V; ++v) sum[0][v] = dot4(sum[0][v], load(row + v * kLanes), weights);
      }
      for (int s = 1; s < kSets; ++s)
        for (int v = 0; v < V; ++v) sum[0][v] = add(sum[0][v], sum[s][v]);
      for (int v = 0; v < V; ++v) store(out + v * kLanes, sum[0][v]);
    }
  }
}

void multiply_int8(const SparseInt8& w, const uint8_t* x, int groups, int row_begin, int row_end, int32_t* acc) {
  constexpr int kVectors = kGroup / kLanes;
  switch (groups) {
    case 1: return multiply_int8_vectors<kVectors>(w, x, row_begin, row_end, acc);
    case 2: return multiply_int8_vectors<2 * kVectors>(w, x, row_begin, row_end, acc);
    case 3: return multiply_int8_vectors<3 * kVectors>(w, x, row_begin, row_end, acc);
    default: return multiply_int8_vectors<4 * kVectors>(w, x, row_begin, row_end, acc);
  }
}

}  // namespace
}  // namespace obert
