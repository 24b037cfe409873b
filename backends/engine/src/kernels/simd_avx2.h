// Vectors of 8 floats or int32: AVX2 with FMA, 16 registers.
//
// Include exactly one simd_<isa>.h in a file, before any kernel body. Everything lies in an unnamed
// namespace: files are compiled with different instruction sets, so nothing in them may be a symbol
// the linker could share (see README.md, "One definition").
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define OBERT_INLINE inline __attribute__((always_inline))

namespace obert {
namespace {

using F32 = __m256;
using I32 = __m256i;
constexpr int kLanes = 8;
constexpr int kRegisters = 16;

inline F32 load(const float* p) { return _mm256_loadu_ps(p); }
inline I32 load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store(float* p, F32 v) { _mm256_storeu_ps(p, v); }
inline void store(int32_t* p, I32 v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline F32 set(float x) { return _mm256_set1_ps(x); }
// Four floats, each in all lanes of a vector.
inline void set_each(const float* p, F32 (&out)[4]) {
  for (int i = 0; i < 4; ++i) out[i] = set(p[i]);
}
inline I32 set(int32_t x) { return _mm256_set1_epi32(x); }

inline I32 first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline void store_first(float* p, F32 v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
inline void store_first(int32_t* p, I32 v, int n) { _mm256_maskstore_epi32(p, first_lanes(n), v); }
// Lanes from n on are zero.
inline F32 load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline I32 load_first(const int32_t* p, int n) { return _mm256_maskload_epi32(p, first_lanes(n)); }

inline F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
inline F32 sqrt(F32 a) { return _mm256_sqrt_ps(a); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }    // a * b + c
inline F32 fnma(F32 a, F32 b, F32 c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
// The second operand where either is NaN.
inline F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
inline F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
inline F32 abs(F32 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
// |a| with the sign of b.
inline F32 copy_sign(F32 a, F32 b) {
  const F32 sign = _mm256_set1_ps(-0.f);
  return _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b));
}

inline I32 add(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
inline I32 max(I32 a, I32 b) { return _mm256_max_epi32(a, b); }
inline I32 min(I32 a, I32 b) { return _mm256_min_epi32(a, b); }
inline I32 bit_or(I32 a, I32 b) { return _mm256_or_si256(a, b); }
inline I32 bit_and(I32 a, I32 b) { return _mm256_and_si256(a, b); }
template <int N>
inline I32 shift_left(I32 a) {
  return _mm256_slli_epi32(a, N);
}
template <int N>
inline I32 shift_right(I32 a) {  // zeros come in
  return _mm256_srli_epi32(a, N);
}
// Of 16 bits each.
inline I32 sub_pairs(I32 a, I32 b) { return _mm256_sub_epi16(a, b); }

inline F32 to_float(I32 a) { return _mm256_cvtepi32_ps(a); }
inline I32 round(F32 a) { return _mm256_cvtps_epi32(a); }  // half to even
inline F32 as_float(I32 a) { return _mm256_castsi256_ps(a); }
inline I32 as_int(F32 a) { return _mm256_castps_si256(a); }

// table[index % 32]; not worth a polynomial's while unless fast.
constexpr bool kFastLookup = false;
inline F32 lookup(const float (&table)[32], I32 index) {
  return _mm256_i32gather_ps(table, bit_and(index, set(31)), sizeof(float));
}

constexpr bool kNanRoundsLow = true;

// clamp(q0 .. q3 + zero_point, 0, 255) as the four bytes of each dword; zero_point as two int16.
inline I32 pack_bytes(I32 q0, I32 q1, I32 q2, I32 q3, I32 zero_point) {
  const __m256i a = _mm256_adds_epi16(_mm256_packs_epi32(q0, q1), zero_point);
  const __m256i b = _mm256_adds_epi16(_mm256_packs_epi32(q2, q3), zero_point);
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm256_shuffle_epi8(_mm256_packus_epi16(a, b), order);
}

// v[index], lane by lane; every index is one of a lane.
inline F32 pick(F32 v, I32 index) { return _mm256_permutevar8x32_ps(v, index); }
// Whether each of these is that of a lane.
inline bool are_lanes(I32 index) { return _mm256_testz_si256(index, set(~(kLanes - 1))); }

// Rows of an 8 x 8 matrix become its columns.
inline void transpose(I32 r[kLanes]) {
  __m256i t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      u[4 * i + 2 * j] = _mm256_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
      u[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
  }
}

}  // namespace
}  // namespace obert
