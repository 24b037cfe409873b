// Four u8 x s8 products a lane on Arm: usdot where the processor has it (i8mm), else sdot, which
// wants both signed. With x = (x - 128) + 128, one more accumulator, the same for all tokens, counts
// -128 times the weights and is taken off at the end: exact, for one eor a vector.
//
// 16-bit products have no dot instruction here: attention keeps to floats.
#pragma once

namespace obert {
namespace {

constexpr Packing kPacking;
constexpr int kWholeRows = 0;
constexpr bool kHasDot2 = false;

inline I32 dot2(I32 sum, I32 a, I32 b) {
  const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
  return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
}

#ifdef __ARM_FEATURE_MATMUL_INT8
inline I32 dot4(I32 sum, I32 activations, I32 weights) {
  return vusdotq_s32(sum, vreinterpretq_u8_s32(activations), vreinterpretq_s8_s32(weights));
}
#else
template <int V>
OBERT_INLINE void add_blocks(const Run& run, I32 (&sum)[V]) {
  const int8x16_t minus_128 = vdupq_n_s8(-128);
  I32 surplus = set(0);
  for (size_t i = 0; i < run.count; ++i) {
    const int32_t* x = run.activations(i);
    const int8x16_t w = vreinterpretq_s8_s32(set(run.weights(i)));
    surplus = vdotq_s32(surplus, minus_128, w);
    for (int v = 0; v < V; ++v)
      sum[v] = vdotq_s32(sum[v], veorq_s8(vreinterpretq_s8_s32(load(x + v * kLanes)), minus_128), w);
  }
  for (int v = 0; v < V; ++v) sum[v] = vsubq_s32(sum[v], surplus);
}
#endif

}  // namespace
}  // namespace obert

#ifdef __ARM_FEATURE_MATMUL_INT8
#include "dot_each.h"
#endif
