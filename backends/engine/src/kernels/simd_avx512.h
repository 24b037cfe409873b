// Vectors of 16 floats or int32: AVX-512 F, BW, DQ and VL, 32 registers. See simd_avx2.h for the
// rules that hold for every such file.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define OBERT_INLINE inline __attribute__((always_inline))

namespace obert {
namespace {

using F32 = __m512;
using I32 = __m512i;
constexpr int kLanes = 16;
constexpr int kRegisters = 32;

inline F32 load(const float* p) { return _mm512_loadu_ps(p); }
inline I32 load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store(float* p, F32 v) { _mm512_storeu_ps(p, v); }
inline void store(int32_t* p, I32 v) { _mm512_storeu_si512(p, v); }
inline F32 set(float x) { return _mm512_set1_ps(x); }
// Four floats, each in all lanes of a vector.
inline void set_each(const float* p, F32 (&out)[4]) {
  const F32 all = _mm512_broadcast_f32x4(_mm_loadu_ps(p));
  out[0] = _mm512_shuffle_ps(all, all, 0x00), out[1] = _mm512_shuffle_ps(all, all, 0x55);
  out[2] = _mm512_shuffle_ps(all, all, 0xaa), out[3] = _mm512_shuffle_ps(all, all, 0xff);
}
inline I32 set(int32_t x) { return _mm512_set1_epi32(x); }

inline __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << (n < 0 ? 0 : n)) - 1u);
}
inline void store_first(float* p, F32 v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
inline void store_first(int32_t* p, I32 v, int n) { _mm512_mask_storeu_epi32(p, first_lanes(n), v); }
inline F32 load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline I32 load_first(const int32_t* p, int n) { return _mm512_maskz_loadu_epi32(first_lanes(n), p); }

inline F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
inline F32 sqrt(F32 a) { return _mm512_sqrt_ps(a); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32 fnma(F32 a, F32 b, F32 c) { return _mm512_fnmadd_ps(a, b, c); }
inline F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
inline F32 abs(F32 a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.f), a); }
inline F32 copy_sign(F32 a, F32 b) {
  const __m512i sign = _mm512_set1_epi32(INT32_MIN);  // bits: sign ? b : a
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(b), _mm512_castps_si512(a), 0xca));
}

inline I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
inline I32 max(I32 a, I32 b) { return _mm512_max_epi32(a, b); }
inline I32 min(I32 a, I32 b) { return _mm512_min_epi32(a, b); }
inline I32 bit_or(I32 a, I32 b) { return _mm512_or_si512(a, b); }
inline I32 bit_and(I32 a, I32 b) { return _mm512_and_si512(a, b); }
template <int N>
inline I32 shift_left(I32 a) {
  return _mm512_slli_epi32(a, N);
}
template <int N>
inline I32 shift_right(I32 a) {  // zeros come in
  return _mm512_srli_epi32(a, N);
}
// Of 16 bits each.
inline I32 sub_pairs(I32 a, I32 b) { return _mm512_sub_epi16(a, b); }

inline F32 to_float(I32 a) { return _mm512_cvtepi32_ps(a); }
inline I32 round(F32 a) { return _mm512_cvtps_epi32(a); }
inline F32 as_float(I32 a) { return _mm512_castsi512_ps(a); }
inline I32 as_int(F32 a) { return _mm512_castps_si512(a); }

// table[index % 32]
constexpr bool kFastLookup = true;
inline F32 lookup(const float (&table)[32], I32 index) {
  return _mm512_permutex2var_ps(load(table), index, load(table + kLanes));
}

constexpr bool kNanRoundsLow = true;

inline I32 pack_bytes(I32 q0, I32 q1, I32 q2, I32 q3, I32 zero_point) {
  const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(q0, q1), zero_point);
  const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(q2, q3), zero_point);
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_shuffle_epi8(_mm512_packus_epi16(a, b), order);
}

// v[index], lane by lane; every index is one of a lane.
inline F32 pick(F32 v, I32 index) { return _mm512_permutexvar_ps(index, v); }
// Whether each of these is that of a lane.
inline bool are_lanes(I32 index) { return _mm512_test_epi32_mask(index, set(~(kLanes - 1))) == 0; }

inline void transpose(I32 r[kLanes]) {
  __m512i t[16], u[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 2; ++j) {
      u[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
      u[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
    }
  }
  // u[4 i + c] holds, in its 128-bit quarter q, rows 4 i .. 4 i + 3 of column 4 q + c.
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88),
                  b = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd),
                  e = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd);
    r[c] = _mm512_shuffle_i32x4(a, b, 0x88);
    r[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
    r[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
    r[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
  }
}

}  // namespace
}  // namespace obert
