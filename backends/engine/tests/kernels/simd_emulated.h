// The vectors of src/kernels/simd_avx512.h in plain C++: 16 floats or int32, and what attention needs of
// them. Attention on emulated tiles, and relative scores, run with it on every processor and under every sanitizer.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "layout.h"
#include "tile_config.h"

namespace obert {
namespace {

constexpr int kLanes = 16;
constexpr int kRegisters = 32;

template <class T>
struct Lanes {
  T lane[kLanes];
};
using F32 = Lanes<float>;
using I32 = Lanes<int32_t>;

template <class T>
Lanes<T> load(const T* p) {
  Lanes<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
void store(T* p, Lanes<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
Lanes<T> load_first(const T* p, int n) {
  Lanes<T> v = {};
  std::memcpy(&v, p, sizeof(T) * static_cast<size_t>(n));
  return v;
}
template <class T>
void store_first(T* p, Lanes<T> v, int n) {
  std::memcpy(p, &v, sizeof(T) * static_cast<size_t>(n));
}
template <class T>
Lanes<T> set(T x) {
  Lanes<T> v;
  for (T& l : v.lane) l = x;
  return v;
}

// f of each lane.
template <class T, class F>
Lanes<T> each(Lanes<T> a, const F& f) {
  for (T& l : a.lane) l = f(l);
  return a;
}
template <class T, class F>
Lanes<T> each(Lanes<T> a, Lanes<T> b, const F& f) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] = f(a.lane[i], b.lane[i]);
  return a;
}
template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline F32 add(F32 a, F32 b) { return each(a, b, [](float x, float y) { return x + y; }); }
inline F32 sub(F32 a, F32 b) { return each(a, b, [](float x, float y) { return x - y; }); }
inline F32 mul(F32 a, F32 b) { return each(a, b, [](float x, float y) { return x * y; }); }
inline F32 div(F32 a, F32 b) { return each(a, b, [](float x, float y) { return x / y; }); }
// The second operand where either is NaN.
inline F32 max(F32 a, F32 b) { return each(a, b, [](float x, float y) { return x > y ? x : y; }); }
inline F32 min(F32 a, F32 b) { return each(a, b, [](float x, float y) { return x < y ? x : y; }); }
inline F32 abs(F32 a) { return each(a, [](float x) { return std::fabs(x); }); }
inline F32 copy_sign(F32 a, F32 b) { return each(a, b, [](float x, float y) { return std::copysign(x, y); }); }
inline F32 fma(F32 a, F32 b, F32 c) {
  for (int i = 0; i < kLanes; ++i) c.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
  return c;
}

inline I32 add(I32 a, I32 b) {
  return each(a, b, [](int32_t x, int32_t y) {
    return static_cast<int32_t>(static_cast<uint32_t>(x) + static_cast<uint32_t>(y));
  });
}
inline I32 max(I32 a, I32 b) { return each(a, b, [](int32_t x, int32_t y) { return x > y ? x : y; }); }
inline I32 min(I32 a, I32 b) { return each(a, b, [](int32_t x, int32_t y) { return x < y ? x : y; }); }
inline I32 bit_or(I32 a, I32 b) { return each(a, b, [](int32_t x, int32_t y) { return x | y; }); }
inline I32 bit_and(I32 a, I32 b) { return each(a, b, [](int32_t x, int32_t y) { return x & y; }); }
template <int N>
inline I32 shift_left(I32 a) {
  return each(a, [](int32_t x) { return static_cast<int32_t>(static_cast<uint32_t>(x) << N); });
}
template <int N>
inline I32 shift_right(I32 a) {
  return each(a, [](int32_t x) { return static_cast<int32_t>(static_cast<uint32_t>(x) >> N); });
}
inline I32 sub_pairs(I32 a, I32 b) {
  return each(a, b, [](int32_t x, int32_t y) {
    const uint32_t low = (static_cast<uint32_t>(x) - static_cast<uint32_t>(y)) & 0xffffu;
    return static_cast<int32_t>(low | ((static_cast<uint32_t>(x) >> 16) - (static_cast<uint32_t>(y) >> 16)) << 16);
  });
}

inline F32 as_float(I32 a) { return same_bits<F32>(a); }
inline I32 as_int(F32 a) { return same_bits<I32>(a); }
inline F32 to_float(I32 a) {
  F32 v;
  for (int i = 0; i < kLanes; ++i) v.lane[i] = static_cast<float>(a.lane[i]);
  return v;
}
inline I32 round(F32 a) {
  I32 v;
  for (int i = 0; i < kLanes; ++i) {
    const float x = std::nearbyint(a.lane[i]);
    v.lane[i] = x >= -0x1p31f && x < 0x1p31f ? static_cast<int32_t>(x) : INT32_MIN;
  }
  return v;
}

constexpr bool kNanRoundsLow = true;

inline int32_t clamped(int64_t x, int64_t low, int64_t high) { return static_cast<int32_t>(x < low ? low : x > high ? high : x); }
inline I32 pack_bytes(I32 q0, I32 q1, I32 q2, I32 q3, I32 zero_point) {
  I32 packed = set(0);
  const I32 q[] = {q0, q1, q2, q3};
  for (int i = 0; i < kLanes; ++i)
    for (int f = 0; f < 4; ++f) {
      const int32_t word = clamped(q[f].lane[i], -32768, 32767) + (zero_point.lane[i] & 0xffff);
      packed.lane[i] = static_cast<int32_t>(static_cast<uint32_t>(packed.lane[i]) |
                                            static_cast<uint32_t>(clamped(word, 0, 255)) << 8 * f);
    }
  return packed;
}

inline F32 pick(F32 v, I32 index) {
  F32 picked = v;
  for (int i = 0; i < kLanes; ++i) picked.lane[i] = v.lane[index.lane[i] % kLanes];
  return picked;
}
inline bool are_lanes(I32 index) {
  for (int32_t i : index.lane)
    if (i < 0 || i >= kLanes) return false;
  return true;
}

inline void transpose(I32 r[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const int32_t x = r[i].lane[j];
      r[i].lane[j] = r[j].lane[i];
      r[j].lane[i] = x;
    }
}

// 16-bit integers are not what is emulated here.
constexpr bool kHasDot2 = false;
inline I32 dot2(I32 sum, I32, I32) { return sum; }

}  // namespace
}  // namespace obert
