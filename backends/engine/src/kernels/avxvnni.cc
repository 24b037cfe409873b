// AVX2 with FMA and 256-bit VNNI.
#include "kernels.h"

#include "simd_avx2.h"
#include "dot_run.h"
#include "dot_avxvnni.h"
#include "multiply_rows.h"
#include "bodies.h"

namespace obert {
const Kernels kAvxVnniKernels = OBERT_KERNEL_TABLE("avxvnni");
}
