// Four u8 x s8 products a lane without VNNI.
//
//   vpmaddubsw   two products, added in int16     multiply pipes (2 of them)
//   vpaddw       two blocks, where their values allow it           any pipe
//   vpmaddwd     int16 pairs with ones, in int32  multiply pipes
//   vpaddd       into the accumulator             any pipe
//
// The multiply pipes bind: 4 instructions for two blocks. SparseInt8 says which neighbours have
// values small enough that the int16 sums of both still fit; those share one vpmaddwd, 3
// instructions for two blocks. So the rate may pass what peak.h measures for single blocks.
//
// A row of a chunk has costs of its own (sums read and written, ends foreseen wrongly): below a quarter of the weights,
// chunks of twice the size pay, though their activations no longer fit a first-level cache of 32 KB (Zen 3, at 10%: 7%
// faster; at 20% level, at 30% 5% slower).
#pragma once

namespace obert {
namespace {

constexpr Packing kPacking = [] {
  Packing p;
  p.sparse_chunk = 192;
  p.sparse_below = .25;
  p.saturates = true;
  p.fill = 1;
  return p;
}();
constexpr int kWholeRows = 0;

inline I32 products(I32 activations, I32 weights) { return _mm256_maddubs_epi16(activations, weights); }
inline I32 widen(I32 sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

// Two s16 x s16 products a lane.
constexpr bool kHasDot2 = true;
OBERT_INLINE I32 dot2(I32 sum, I32 a, I32 b) {
  sum = add(sum, _mm256_madd_epi16(a, b));
  // GCC 12 keeps a second copy of every accumulator, as another vector type, without this.
  __asm__("" : "+x"(sum));
  return sum;
}

template <int V>
OBERT_INLINE void add_blocks(const Run& run, I32 (&sum)[V]) {
  int i = 0;
  for (; i < 2 * run.pairs; i += 2) {
    const int32_t *x = run.activations(i), *y = run.activations(i + 1);
    const I32 w = set(run.weights(i)), u = set(run.weights(i + 1));
    for (int v = 0; v < V; ++v)
      sum[v] =
          add(sum[v],
              widen(_mm256_add_epi16(products(load(x + v * kLanes), w), products(load(y + v * kLanes), u))));
  }
  for (; i < run.count; ++i) {
    const int32_t* x = run.activations(i);
    const I32 w = set(run.weights(i));
    for (int v = 0; v < V; ++v) sum[v] = add(sum[v], widen(products(load(x + v * kLanes), w)));
  }
}

}  // namespace
}  // namespace obert
