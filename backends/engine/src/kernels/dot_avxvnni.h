// vpdpbusd and vpdpwssd on 256 bits, as processors without AVX-512 have them: one multiplication
// where AVX2 takes two, and no need of couples.
#pragma once

namespace obert {
namespace {

constexpr Packing kPacking = [] {
  Packing p;
  p.fill = 1;
  return p;
}();
constexpr int kWholeRows = 0;
constexpr bool kHasDot2 = true;

inline I32 dot4(I32 sum, I32 activations, I32 weights) {
  return _mm256_dpbusd_avx_epi32(sum, activations, weights);
}

OBERT_INLINE I32 dot2(I32 sum, I32 a, I32 b) {
  sum = _mm256_dpwssd_avx_epi32(sum, a, b);
  __asm__("" : "+x"(sum));  // see dot_avx2.h
  return sum;
}

}  // namespace
}  // namespace obert

#include "dot_each.h"
