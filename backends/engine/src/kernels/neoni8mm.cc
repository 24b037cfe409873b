// 64-bit Arm with the mixed dot product (i8mm).
#include "kernels.h"

#include "simd_neon.h"
#include "dot_run.h"
#include "dot_neon.h"
#include "multiply_rows.h"
#include "bodies.h"

namespace obert {
const Kernels kNeonI8mmKernels = OBERT_KERNEL_TABLE("neoni8mm");
}
