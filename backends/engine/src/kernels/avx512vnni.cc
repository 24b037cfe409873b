// AVX-512 F, BW, DQ, VL and VNNI.
#include "kernels.h"

#include "simd_avx512.h"
#include "dot_run.h"
#include "dot_avx512vnni.h"
#include "multiply_rows.h"
#include "bodies.h"

namespace obert {
const Kernels kAvx512VnniKernels = OBERT_KERNEL_TABLE("avx512vnni");
}
