// 64-bit Arm with the signed dot product (Armv8.2 dotprod).
#include "kernels.h"

#include "simd_neon.h"
#include "dot_run.h"
#include "dot_neon.h"
#include "multiply_rows.h"
#include "bodies.h"

namespace obert {
const Kernels kNeonDotKernels = OBERT_KERNEL_TABLE("neondot");
}
