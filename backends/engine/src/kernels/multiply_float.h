// Sparse float product: every kept weight is broadcast and multiplied into the tokens of the panel.
//
// Two fused multiply-adds a cycle bind on AVX2 (16 MAC a cycle), one on double-pumped AVX-512 and
// two on Intel's server cores; each needs one load of activations, which come from the first-level
// cache because a chunk of inputs fits there. Include after a simd_<isa>.h.
#pragma once
#include "prefetch.h"

namespace obert {
namespace {

// How far ahead weights are asked for, three lines a row of a chunk, what it takes at 80% zeros. With 8 lanes, where the
// load pipes bind, which would do it, they are not.
constexpr size_t kFloatsAhead = kLanes >= 16 ? 256 : 0;

template <int V>
void multiply_float_vectors(const SparseFloat& w, const float* x, int row_begin, int row_end, float* acc) {
  for (int c = 0; c < w.chunks; ++c) {
    const float* chunk = x + static_cast<size_t>(c) * w.chunk_inputs * kPanel;
    const uint32_t* start = w.start + static_cast<size_t>(c) * w.rows;
    for (int r = row_begin; r < row_end; ++r) {
      float* out = acc + static_cast<size_t>(r - row_begin) * kPanel;
      if constexpr (kFloatsAhead > 0) {
        prefetch<2>(w.value + start[r] + kFloatsAhead, 2 * kPrefetchLine);
        prefetch<2>(w.index + start[r] + kFloatsAhead, kPrefetchLine);
      }
      F32 sum[V];
      for (int v = 0; v < V; ++v) sum[v] = c ? load(out + v * kLanes) : set(0.f);
      for (uint32_t b = start[r]; b < start[r + 1]; ++b) {
        const float* row = chunk + static_cast<size_t>(w.index[b]) * kPanel;
        const F32 weight = set(w.value[b]);
        for (int v = 0; v < V; ++v) sum[v] = fma(weight, load(row + v * kLanes), sum[v]);
      }
      for (int v = 0; v < V; ++v) store(out + v * kLanes, sum[v]);
    }
  }
}

void multiply_float(const SparseFloat& w, const float* x, int groups, int row_begin, int row_end,
                    float* acc) {
  constexpr int kVectors = kGroup / kLanes;
  switch (groups) {
    case 1:
      return multiply_float_vectors<kVectors>(w, x, row_begin, row_end, acc);
    case 2:
      return multiply_float_vectors<2 * kVectors>(w, x, row_begin, row_end, acc);
    case 3:
      return multiply_float_vectors<3 * kVectors>(w, x, row_begin, row_end, acc);
    default:
      return multiply_float_vectors<4 * kVectors>(w, x, row_begin, row_end, acc);
  }
}

}  // namespace
}  // namespace obert
