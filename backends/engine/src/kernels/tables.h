// Tables this library may have been built with; select.cc knows which.
#pragma once
#include "kernels.h"

namespace obert {

extern const Kernels kPortableKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAmxKernels;
extern const Kernels kNeonDotKernels;
extern const Kernels kNeonI8mmKernels;

}  // namespace obert
