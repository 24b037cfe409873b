// Four u8 x s8 products a lane with vpdpbusd.
//
// One multiplication and one 64-byte load for 16 tokens: on Zen 4 both run once a cycle, so that
// every further load costs. Four blocks' indices come in one load, their weights in another, and
// vpermd, on a pipe of its own, broadcasts them. Two sets of accumulators cover the latency. Rows that
// keep few blocks gain more from passing over the accumulators less often (a 64-byte store takes two
// cycles) than they lose by reading some activations from the second-level cache.
#pragma once

namespace obert {
namespace {

constexpr Packing kPacking{96, 192, false, false, true, 4};

// 24 sums, 4 vectors of activations and one of weights: 10 loads for 24 multiplications.
constexpr int kWholeRows = 6;
OBERT_INLINE I32 dot4(I32 sum, I32 x, I32 w) {
  sum = _mm512_dpbusd_epi32(sum, x, w);
  __asm__("" : "+v"(sum));   // as in dot2
  return sum;
}

// Two s16 x s16 products a lane.
constexpr bool kHasDot2 = true;
OBERT_INLINE I32 dot2(I32 sum, I32 a, I32 b) {
  sum = _mm512_dpwssd_epi32(sum, a, b);
  // GCC 12 keeps a second copy of every accumulator, as another vector type, without this.
  __asm__("" : "+v"(sum));
  return sum;
}

template <int V>
OBERT_INLINE void add_blocks(const Run& run, I32 (&sum)[V]) {
  constexpr int kSets = V == 4 ? 2 : 4;
  I32 more[kSets][V];
  for (int s = 1; s < kSets; ++s)
    for (int v = 0; v < V; ++v) more[s][v] = set(0);
  for (int v = 0; v < V; ++v) more[0][v] = sum[v];
  int i = 0;
  for (; i + 4 <= run.count; i += 4) {
    uint32_t indices;
    std::memcpy(&indices, run.index + i, sizeof indices);
    const I32 weights = _mm512_castsi128_si512(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(run.value + static_cast<size_t>(i) * kBlock)));
    for (int j = 0; j < 4; ++j) {
      const int32_t* x = run.chunk + (indices >> 8 * j & 0xff) * kPanel;
      const I32 w = j == 0 ? _mm512_broadcastd_epi32(_mm512_castsi512_si128(weights))
                           : _mm512_permutexvar_epi32(set(j), weights);
      for (int v = 0; v < V; ++v)
        more[j % kSets][v] = _mm512_dpbusd_epi32(more[j % kSets][v], load(x + v * kLanes), w);
    }
  }
  for (; i < run.count; ++i) {
    const int32_t* x = run.activations(i);
    const I32 w = set(run.weights(i));
    for (int v = 0; v < V; ++v) more[0][v] = _mm512_dpbusd_epi32(more[0][v], load(x + v * kLanes), w);
  }
  for (int v = 0; v < V; ++v) {
    sum[v] = more[0][v];
    for (int s = 1; s < kSets; ++s) sum[v] = add(sum[v], more[s][v]);
  }
}

}  // namespace
}  // namespace obert
