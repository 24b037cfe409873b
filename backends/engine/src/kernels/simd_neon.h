// Vectors of 4 floats or int32: Advanced SIMD of 64-bit Arm, 32 registers. See simd_avx2.h for the
// rules that hold for every such file.
#pragma once
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define OBERT_INLINE inline __attribute__((always_inline))

namespace obert {
namespace {

using F32 = float32x4_t;
using I32 = int32x4_t;
constexpr int kLanes = 4;
constexpr int kRegisters = 32;

inline F32 load(const float* p) { return vld1q_f32(p); }
inline I32 load(const int32_t* p) { return vld1q_s32(p); }
inline void store(float* p, F32 v) { vst1q_f32(p, v); }
inline void store(int32_t* p, I32 v) { vst1q_s32(p, v); }
inline F32 set(float x) { return vdupq_n_f32(x); }
// Four floats, each in all lanes of a vector.
inline void set_each(const float* p, F32 (&out)[4]) {
  for (int i = 0; i < 4; ++i) out[i] = set(p[i]);
}
inline I32 set(int32_t x) { return vdupq_n_s32(x); }

inline size_t lane_bytes(int n) { return n <= 0 ? 0 : static_cast<size_t>(n < kLanes ? n : kLanes) * 4; }
inline void store_first(float* p, F32 v, int n) { std::memcpy(p, &v, lane_bytes(n)); }
inline void store_first(int32_t* p, I32 v, int n) { std::memcpy(p, &v, lane_bytes(n)); }
inline F32 load_first(const float* p, int n) {
  F32 v = set(0.f);
  std::memcpy(&v, p, lane_bytes(n));
  return v;
}
inline I32 load_first(const int32_t* p, int n) {
  I32 v = set(0);
  std::memcpy(&v, p, lane_bytes(n));
  return v;
}

inline F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
inline F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
inline F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
inline F32 div(F32 a, F32 b) { return vdivq_f32(a, b); }
inline F32 sqrt(F32 a) { return vsqrtq_f32(a); }
inline F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
inline F32 fnma(F32 a, F32 b, F32 c) { return vfmsq_f32(c, a, b); }
// Not vmaxq and vminq: the second operand must come out where either is NaN.
inline F32 max(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F32 min(F32 a, F32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F32 abs(F32 a) { return vabsq_f32(a); }
inline F32 copy_sign(F32 a, F32 b) { return vbslq_f32(vdupq_n_u32(0x80000000u), b, a); }

inline I32 add(I32 a, I32 b) { return vaddq_s32(a, b); }
inline I32 max(I32 a, I32 b) { return vmaxq_s32(a, b); }
inline I32 min(I32 a, I32 b) { return vminq_s32(a, b); }
inline I32 bit_or(I32 a, I32 b) { return vorrq_s32(a, b); }
inline I32 bit_and(I32 a, I32 b) { return vandq_s32(a, b); }
template <int N>
inline I32 shift_left(I32 a) {
  return vshlq_n_s32(a, N);
}
template <int N>
inline I32 shift_right(I32 a) {  // zeros come in
  return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), N));
}
// Of 16 bits each.
inline I32 sub_pairs(I32 a, I32 b) { return vreinterpretq_s32_s16(vsubq_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b))); }

inline F32 to_float(I32 a) { return vcvtq_f32_s32(a); }
inline I32 round(F32 a) { return vcvtnq_s32_f32(a); }
inline F32 as_float(I32 a) { return vreinterpretq_f32_s32(a); }
inline I32 as_int(F32 a) { return vreinterpretq_s32_f32(a); }

// table[index % 32]; not worth a polynomial's while unless fast.
constexpr bool kFastLookup = false;
inline F32 lookup(const float (&table)[32], I32 index) {
  float found[kLanes];
  int32_t at[kLanes];
  vst1q_s32(at, index);
  for (int i = 0; i < kLanes; ++i) found[i] = table[at[i] & 31];
  return vld1q_f32(found);
}

constexpr bool kNanRoundsLow = false;  // it rounds to 0

inline I32 pack_bytes(I32 q0, I32 q1, I32 q2, I32 q3, I32 zero_point) {
  static const uint8_t kOrder[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const int16x8_t zero = vreinterpretq_s16_s32(zero_point);
  const int16x8_t a = vqaddq_s16(vcombine_s16(vqmovn_s32(q0), vqmovn_s32(q1)), zero);
  const int16x8_t b = vqaddq_s16(vcombine_s16(vqmovn_s32(q2), vqmovn_s32(q3)), zero);
  return vreinterpretq_s32_u8(vqtbl1q_u8(vcombine_u8(vqmovun_s16(a), vqmovun_s16(b)), vld1q_u8(kOrder)));
}

// v[index], lane by lane; every index is one of a lane.
inline F32 pick(F32 v, I32 index) { 
  // Bytes of the lane.
  const I32 bytes = vaddq_s32(vmulq_s32(index, set(0x04040404)), set(0x03020100));
  return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v), vreinterpretq_u8_s32(bytes)));
 }
// Whether each of these is that of a lane.
inline bool are_lanes(I32 index) { return vmaxvq_u32(vreinterpretq_u32_s32(index)) < kLanes; }

inline void transpose(I32 r[kLanes]) {
  const int32x4_t a = vtrn1q_s32(r[0], r[1]), b = vtrn2q_s32(r[0], r[1]);
  const int32x4_t c = vtrn1q_s32(r[2], r[3]), d = vtrn2q_s32(r[2], r[3]);
  r[0] = vcombine_s32(vget_low_s32(a), vget_low_s32(c));
  r[1] = vcombine_s32(vget_low_s32(b), vget_low_s32(d));
  r[2] = vcombine_s32(vget_high_s32(a), vget_high_s32(c));
  r[3] = vcombine_s32(vget_high_s32(b), vget_high_s32(d));
}

}  // namespace
}  // namespace obert
