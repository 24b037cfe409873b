// AVX2 with FMA.
#include "kernels.h"

#include "simd_avx2.h"
#include "dot_avx2.h"
#include "multiply_couples.h"
#include "bodies.h"

namespace obert {
const Kernels kAvx2Kernels = OBERT_KERNEL_TABLE("avx2");
}
