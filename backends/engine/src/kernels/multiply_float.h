// Sparse float product: every kept weight is broadcast and multiplied into the tokens of the panel.
//
// Two fused multiply-adds a cycle bind on AVX2 (16 MAC a cycle), one on double-pumped AVX-512 and
// two on Intel's server cores and Zen 5; each needs one load of activations, which come from the first-level
// cache because a chunk of inputs fits there. Four weights' indices come in one load, and where vectors have 16 lanes
// the weights in another. Include after a simd_<isa>.h.
#pragma once
#include <cstring>

#include "prefetch.h"
#include "row_order.h"

namespace obert {
namespace {

// How far ahead weights are asked for, and lines of them a row of a chunk, what it takes at 80% zeros. With 8 lanes,
// where the load pipes bind, which would do it, they are not.
constexpr size_t kFloatsAhead = kLanes >= 16 ? 256 : 0;

// `w` is a copy, as in multiply_rows.h.
template <int V>
void multiply_float_vectors(const SparseFloat w, const float* x, int row_begin, int row_end, float* acc) {
  constexpr int kSets = V >= 8 ? 1 : V >= 4 ? 2 : 4;   // as many accumulators as cover the latency
  for (int c = 0; c < w.chunks; ++c) {
    const float* chunk = x + static_cast<size_t>(c) * w.chunk_inputs * kPanel;
    const size_t at = static_cast<size_t>(c) * w.rows;
    for (int p = row_begin; p < row_end; ++p) {
      float* out = acc + static_cast<size_t>(row_at(w.order, at, p) - row_begin) * kPanel;
      uint32_t b = w.start[at + p];
      const uint32_t end = w.start[at + p + 1];
      if constexpr (kFloatsAhead > 0) {
        prefetch<2>(w.value + b, kFloatsAhead * sizeof(float), 3 * kPrefetchLine);
        prefetch<2>(w.index + b, kFloatsAhead, kPrefetchLine);
      }
      F32 sum[kSets][V];
      for (int v = 0; v < V; ++v) sum[0][v] = c ? load(out + v * kLanes) : set(0.f);
      for (int s = 1; s < kSets; ++s)
        for (int v = 0; v < V; ++v) sum[s][v] = set(0.f);
      for (; b + 4 <= end; b += 4) {
        uint32_t indices;
        std::memcpy(&indices, w.index + b, sizeof indices);
        F32 weights[4];
        set_each(w.value + b, weights);
        for (int j = 0; j < 4; ++j) {
          const float* row = chunk + (indices >> 8 * j & 0xff) * kPanel;
          for (int v = 0; v < V; ++v) sum[j % kSets][v] = fma(weights[j], load(row + v * kLanes), sum[j % kSets][v]);
        }
      }
      for (; b < end; ++b) {
        const float* row = chunk + static_cast<size_t>(w.index[b]) * kPanel;
        const F32 weight = set(w.value[b]);
        for (int v = 0; v < V; ++v) sum[0][v] = fma(weight, load(row + v * kLanes), sum[0][v]);
      }
      for (int v = 0; v < V; ++v) {
        for (int s = 1; s < kSets; ++s) sum[0][v] = add(sum[0][v], sum[s][v]);
        store(out + v * kLanes, sum[0][v]);
      }
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
