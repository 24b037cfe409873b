// Four u8 x s8 products a lane with vpdpbusd.
//
// Two multiplications and two 64-byte loads a cycle on Zen 5 and Intel's server cores, one of each on Zen 4: a block of 64
// tokens is four of both, and every further load costs. Eight blocks' indices come in one load and their weights in
// two, four to every 128-bit lane, where vpshufd broadcasts one of them without a register that says which. Two sets of
// accumulators cover the latency. Rows that keep few blocks gain more from passing over the accumulators less often (a
// 64-byte store takes two cycles) than they lose by reading some activations from the second-level cache.
#pragma once

namespace obert {
namespace {

constexpr Packing kPacking = [] {
  Packing p;
  p.sparse_chunk = p.float_chunk = 192;
  p.whole = true;
  p.fill = 4;
  return p;
}();

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

// `Count` blocks, 4 or 8, from block i of the run on.
template <int Count, int V, int Sets>
OBERT_INLINE void add_some(const Run& run, size_t i, I32 (&sum)[Sets][V]) {
  uint64_t indices = 0;
  std::memcpy(&indices, run.index + i, Count);
  const auto* value = reinterpret_cast<const __m128i*>(run.value + i * kBlock);
  for (int four = 0; four < Count / 4; ++four) {
    const I32 weights = _mm512_broadcast_i32x4(_mm_loadu_si128(value + four));
    const I32 each[4] = {_mm512_shuffle_epi32(weights, _MM_PERM_AAAA), _mm512_shuffle_epi32(weights, _MM_PERM_BBBB),
                         _mm512_shuffle_epi32(weights, _MM_PERM_CCCC), _mm512_shuffle_epi32(weights, _MM_PERM_DDDD)};
    for (int j = 0; j < 4; ++j) {
      const int32_t* x = run.chunk + (indices >> (8 * (4 * four + j)) & 0xff) * kPanel;
      for (int v = 0; v < V; ++v) sum[j % Sets][v] = dot4(sum[j % Sets][v], load(x + v * kLanes), each[j]);
    }
  }
}

template <int V>
OBERT_INLINE void add_blocks(const Run& run, I32 (&sum)[V]) {
  constexpr int kSets = V == 4 ? 2 : 4;
  I32 more[kSets][V];
  for (int s = 1; s < kSets; ++s)
    for (int v = 0; v < V; ++v) more[s][v] = set(0);
  for (int v = 0; v < V; ++v) more[0][v] = sum[v];
  const size_t eights = run.count & ~size_t{7};
  size_t i = 0;
  for (; i != eights; i += 8) add_some<8>(run, i, more);
  if (run.count & 4) {
    add_some<4>(run, i, more);
    i += 4;
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
