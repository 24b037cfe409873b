// Vectors of floats to 8 bits, and through them. Include after a simd_<isa>.h.
#pragma once

namespace obert {
namespace {

// Bytes clamp(round(y * inverse_scale) + zero_point). The saturation of pack_bytes is the clamp; only
// what is too large for an int32 is cut off before. NaN becomes 0.
struct Quantizer {
  F32 inverse_scale, high, low;
  I32 zero_point;
  Quantizer(float inverse, int zero)
      : inverse_scale(set(inverse)),
        high(set(static_cast<float>(255 - zero))),
        low(set(static_cast<float>(-zero))),
        zero_point(set(static_cast<int32_t>(zero | zero << 16))) {}
  I32 operator()(F32 y) const {
    y = min(high, mul(y, inverse_scale));
    if (!kNanRoundsLow) y = max(y, low);
    return round(y);
  }
  // The code less the zero point, as a whole number.
  I32 code(F32 y) const { return round(max(min(high, mul(y, inverse_scale)), low)); }
  // The dwords of four features; 0 stands for the zero point.
  I32 pack(I32 q0, I32 q1, I32 q2, I32 q3) const { return pack_bytes(q0, q1, q2, q3, zero_point); }
};

// Quantises and dequantises.
struct Rounder {
  F32 inverse_scale, scale, low, high;
  explicit Rounder(const Rounding& r)
      : inverse_scale(set(r.scale == 0.f ? 0.f : 1.f / r.scale)),
        scale(set(r.scale)),
        low(set(static_cast<float>(-r.zero_point))),
        high(set(static_cast<float>(255 - r.zero_point))) {}
  F32 operator()(F32 x) const {
    return mul(to_float(round(min(max(mul(x, inverse_scale), low), high))), scale);
  }
};

}  // namespace
}  // namespace obert
