// AVX2 with FMA.
#include "kernels.h"
#include "simd_avx2.h"

namespace obert {
namespace {

// u8 x s8 in int16 pairs, which the rule of kernels.h for blocks keeps from saturating, then in int32.
inline I32 dot4(I32 sum, I32 activations, I32 weights) {
  return add(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(activations, weights), _mm256_set1_epi16(1)));
}

}  // namespace
}  // namespace obert

#include "maths.h"
#include "multiply_int8.h"
#include "multiply_float.h"
#include "finish.h"
#include "layer_norm.h"
#include "attention.h"
#include "transpose.h"
#include "table.h"

namespace obert {
const Kernels kAvx2Kernels = OBERT_KERNEL_TABLE("avx2");
}
