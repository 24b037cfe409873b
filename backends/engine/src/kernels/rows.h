// One row of gathered tables, unpacked and scaled, step by step. Include after a simd_<isa>.h, whose compiler flags
// are all this needs: every loop runs over a row in the first-level cache and is left to the compiler.
#pragma once

namespace obert {
namespace {

template <class T>
void widen(const T* from, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(from[i]);
}

inline float from_half(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 0) {
    const float f = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -f : f;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline void gather(const RowStep& s, size_t index, float* out) {
  const size_t n = static_cast<size_t>(s.width), at = index * n;
  switch (s.element) {
    case Element::kFloat:
      std::memcpy(out, static_cast<const float*>(s.table) + at, n * sizeof *out);
      return;
    case Element::kInt8:
      return widen(static_cast<const int8_t*>(s.table) + at, s.width, out);
    case Element::kUInt8:
      return widen(static_cast<const uint8_t*>(s.table) + at, s.width, out);
    case Element::kHalf:
      for (size_t i = 0; i < n; ++i) out[i] = from_half(static_cast<const uint16_t*>(s.table)[at + i]);
  }
}

// b has as many elements as a, or one for each run of a.
template <class F>
OBERT_INLINE void combine(const RowStep& s, const float* a, const float* b, float* out, const F& f) {
  if (s.width_a == s.width_b) {
    for (int i = 0; i < s.width_a; ++i) out[i] = f(a[i], b[i]);
    return;
  }
  const int run = s.width_a / s.width_b;
  for (int g = 0; g < s.width_b; ++g, a += run, out += run) {
    const float y = b[g];
    for (int i = 0; i < run; ++i) out[i] = f(a[i], y);
  }
}

inline void compute_step(const RowStep& s, size_t index, const float* a, const float* b, float* out) {
  switch (s.op) {
    case RowOp::kGather:
      return gather(s, index, out);
    case RowOp::kConstant:
      out[0] = s.constant;
      return;
    case RowOp::kAdd:
      return combine(s, a, b, out, [](float x, float y) { return x + y; });
    case RowOp::kSubtract:
      return combine(s, a, b, out, [](float x, float y) { return x - y; });
    case RowOp::kMultiply:
      return combine(s, a, b, out, [](float x, float y) { return x * y; });
    case RowOp::kDivide:
      return combine(s, a, b, out, [](float x, float y) { return x / y; });
    case RowOp::kFloor:
      for (int i = 0; i < s.width; ++i) out[i] = __builtin_floorf(a[i]);
      return;
    case RowOp::kConcat:
      std::memcpy(out, a, static_cast<size_t>(s.width_a) * sizeof *out);
      std::memcpy(out + s.width_a, b, static_cast<size_t>(s.width_b) * sizeof *out);
  }
}

void gather_row(const RowStep* steps, int count, size_t index, float* scratch, float* out, bool add) {
  for (int i = 0; i < count; ++i) {
    const RowStep& s = steps[i];
    const bool last = i + 1 == count && !add;
    compute_step(s, index, scratch + s.a, scratch + s.b, last ? out : scratch + s.out);
  }
  if (!add) return;
  const RowStep& s = steps[count - 1];
  for (int i = 0; i < s.width; ++i) out[i] += scratch[s.out + static_cast<size_t>(i)];
}

}  // namespace
}  // namespace obert
