// Operations on tile registers: AMX-TILE, AMX-INT8 and AMX-BF16. tests/kernels/tile_emulated.h has the same in
// plain C++.
//
// Assembly instead of the intrinsics of amxint8intrin.h: those take the number of a register as a
// token, not as a template argument, and GCC 12's do not tell the compiler that they read and write
// memory, so that it may drop what was written for them.
#pragma once
#include <cstddef>

#include "tile_config.h"

namespace obert {
namespace {

OBERT_INLINE void tile_configure(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
OBERT_INLINE void tile_release() { __asm__ volatile("tilerelease" ::: "memory"); }
template <int T>
OBERT_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
// Rows `stride` bytes apart.
template <int T>
OBERT_INLINE void tile_load(const void* from, size_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
OBERT_INLINE void tile_store(void* to, size_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
// C[m][n] += sum over k, i of int8 A[m][4 k + i] * uint8 B[k][4 n + i], in int32.
template <int C, int A, int B>
OBERT_INLINE void tile_dot() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// C[m][n] += sum over k, i of bfloat16 A[m][2 k + i] * B[k][2 n + i], in float32.
template <int C, int A, int B>
OBERT_INLINE void tile_dot_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace obert
