// Four u8 x s8 products a lane without VNNI.
//
//   vpmaddubsw   two products, added in int16     multiply pipes (2 of them)
//   vpaddw       two blocks, where their values allow it           any pipe
//   vpmaddwd     int16 pairs with ones, in int32  multiply pipes
//   vpaddd       into the accumulator             any pipe
//
// The multiply pipes bind: 4 instructions for two blocks. SparseInt8 says which neighbours have
// values small enough that the int16 sums of both still fit; those share one vpmaddwd, 3
// instructions for two blocks. So the rate may pass what peak.h measures for single blocks. How rows pass:
// multiply_couples.h.
#pragma once

namespace obert {
namespace {

constexpr Packing kPacking = [] {
  Packing p;
  p.saturates = true;
  p.fill = 1;
  return p;
}();

inline I32 products(I32 activations, I32 weights) { return _mm256_maddubs_epi16(activations, weights); }
inline I32 add_products(I32 a, I32 b) { return _mm256_add_epi16(a, b); }
inline I32 widen(I32 sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

// Two s16 x s16 products a lane.
constexpr bool kHasDot2 = true;
OBERT_INLINE I32 dot2(I32 sum, I32 a, I32 b) {
  const I32 p = _mm256_madd_epi16(a, b);
  // From the intrinsic GCC 12 makes a sum of another vector type, and a copy of each in every turn of a loop.
  __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(p));
  return sum;
}

}  // namespace
}  // namespace obert
