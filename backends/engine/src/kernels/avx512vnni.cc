// AVX-512 F, BW, DQ, VL and VNNI.
#include "kernels.h"
#include "simd_avx512.h"

namespace obert {
namespace {

inline I32 dot4(I32 sum, I32 activations, I32 weights) { return _mm512_dpbusd_epi32(sum, activations, weights); }

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
const Kernels kAvx512VnniKernels = OBERT_KERNEL_TABLE("avx512vnni");
}
