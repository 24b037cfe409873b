// Elementary functions on vectors. Include after a simd_<isa>.h.
//
// Polynomials are minimax fits made for this file; errors are the largest seen over a fine grid in
// float32 arithmetic, and tests/kernels/finish_test.cc holds every table to them.
// NaN goes through everywhere: in max(a, b) and min(a, b) the operand that may be NaN is the second.
#pragma once

namespace obert {
namespace {

template <int N>
inline F32 polynomial(F32 x, const float (&c)[N]) {
  F32 y = set(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, set(c[i]));
  return y;
}

// 2^x on [-1/2, 1/2].
constexpr float kExp2[] = {1.00000007f,    6.93146967e-1f, 2.40221197e-1f,
                           5.55071332e-2f, 9.67554121e-3f, 1.3276456e-3f};

// 2^x, relative error 1.5e-7; 0 below 2^-126, 2^127 * (1 .. 1.42) above.
inline F32 exp2(F32 x) {
  x = min(set(127.f), max(set(-127.f), x));
  const I32 whole = round(x);
  const F32 power = as_float(shift_left<23>(add(whole, set(127))));  // -127 makes 0
  return mul(polynomial(sub(x, to_float(whole)), kExp2), power);
}

// e^x for x <= 0 (or hardly above), relative error 1.5e-7; 0 below e^-87.3. Softmax needs no more.
inline F32 exp_of_negative(F32 x) {
  // Added, it leaves the nearest whole number plus 127 in the lowest bits, ready to be an exponent.
  const F32 magic = set(0x1.8p23f + 127.f);
  x = max(set(-127.f), mul(x, set(1.44269504f)));  // -127 makes 0
  const F32 whole = add(x, magic);
  const F32 power = as_float(shift_left<23>(as_int(whole)));
  return mul(polynomial(sub(x, sub(whole, magic)), kExp2), power);
}

inline F32 exp(F32 x) { return exp2(mul(x, set(1.44269504f))); }

// 1 / (1 + e^-x)
inline F32 sigmoid(F32 x) { return div(set(1.f), add(set(1.f), exp(sub(set(0.f), x)))); }

// x * sigmoid(x), which is at -1.5e-36 where the clamp sets in.
inline F32 silu(F32 x) {
  x = max(set(-87.f), x);
  return mul(x, sigmoid(x));
}

// x * sigmoid(1.702 x), Hendrycks & Gimpel 2016, section 2
inline F32 gelu_sigmoid(F32 x) {
  x = max(set(-51.f), x);
  return mul(x, sigmoid(mul(set(1.702f), x)));
}

// tanh |x| = (1 - e) / (1 + e), e = exp(-2 |x|)
inline F32 tanh(F32 x) {
  const F32 e = exp(mul(set(-2.f), abs(x)));
  return copy_sign(div(sub(set(1.f), e), add(set(1.f), e)), x);
}

// x * (1 + tanh(u)) / 2 = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
inline F32 gelu_tanh(F32 x) {
  x = max(set(-16.f), x);  // 0 from here on
  const F32 cubic = fma(mul(x, x), set(.0713548163f), set(1.59576912f));
  return mul(x, sigmoid(mul(x, cubic)));
}

}  // namespace
}  // namespace obert
