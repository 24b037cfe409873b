// GELU with erf: x * (1 + erf(x / sqrt 2)) / 2. Include after maths.h.
//
// It takes more instructions than everything else between two products, and a polynomial is one long
// chain of them. So kernels hand over several vectors at once, whose chains fill each other's waiting.
#pragma once

namespace obert {
namespace {

// The largest |x| at which the result differs from 0 or x by more than the error.
constexpr float kGeluBorder = 5.25f;
constexpr float kGeluPieces = 31.f;  // lengths of a piece from 0 to the border

// Phi(-a) a by powers of the distance from the middle of each piece, which lies at a whole number of
// lengths; the first is half a piece.
alignas(64) constexpr float kGeluTail[4][32] = {
    {
        -2.65883777e-08f, 0.0732893944f, 0.124446429f, 0.155317172f, 0.168724731f,
        0.168135941f, 0.157280624f, 0.139784276f, 0.118866295f, 0.0971373618f,
        0.0765072107f, 0.0581934154f, 0.0428071208f, 0.0304843243f, 0.0210323799f,
        0.0140670687f, 0.00912464131f, 0.00574216945f, 0.0035067373f, 0.00207870244f,
        0.00119624368f, 0.000668416498f, 0.000362681603f, 0.000191115774f, 9.78126118e-05f,
        4.86238532e-05f, 2.34792624e-05f, 1.10133778e-05f, 5.01851309e-06f, 2.22158474e-06f,
        9.55425094e-07f, 3.99197006e-07f
    },
    {
        0.0846791193f, 0.0620106608f, 0.0406150222f, 0.0216026194f, 0.00579675054f,
        -0.00634648511f, -0.0147548281f, -0.0196979288f, -0.021701416f, -0.0214383658f,
        -0.0196205117f, -0.016907461f, -0.0138449455f, -0.010835059f, -0.00813473295f,
        -0.00587450666f, -0.00408830075f, -0.00274582906f, -0.00178170006f, -0.0011178772f,
        -0.000678648183f, -0.000398862234f, -0.000227050536f, -0.00012522882f, -6.69426518e-05f,
        -3.4692257e-05f, -1.7433742e-05f, -8.49690787e-06f, -4.0171326e-06f, -1.84255214e-06f,
        -8.20025662e-07f, -3.5415087e-07f
    },
    {
        -0.0114591289f, -0.0111046322f, -0.0101741105f, -0.00875190366f, -0.00700633274f,
        -0.00512972055f, -0.00330740726f, -0.00169132755f, -0.000383150851f, 0.000571332755f,
        0.00117732165f, 0.00147865142f, 0.00154197705f, 0.00144130585f, 0.00124566781f,
        0.0010112843f, 0.000778307614f, 0.000571154058f, 0.000401220983f, 0.000270551769f,
        0.000175486392f, 0.000109657594f, 6.60940859e-05f, 3.84621744e-05f, 2.16267581e-05f,
        1.17574764e-05f, 6.18349668e-06f, 3.14736553e-06f, 1.55102907e-06f, 7.4027929e-07f,
        3.42293163e-07f, 1.53368433e-07f
    },
    {
        5.45887124e-05f, 0.000213607462f, 0.000400389428f, 0.000538464694f, 0.000614656543f,
        0.000626229623f, 0.000580328226f, 0.000491522253f, 0.000378145342f, 0.000258530607f,
        0.000147927218f, 5.66576236e-05f, -1.03626599e-05f, -5.29692225e-05f, -7.43936616e-05f,
        -7.96953609e-05f, -7.43242053e-05f, -6.31824005e-05f, -5.00164169e-05f, -3.73114381e-05f,
        -2.64219852e-05f, -1.78482042e-05f, -1.15401153e-05f, -7.15971919e-06f, -4.27043369e-06f,
        -2.45231286e-06f, -1.35742152e-06f, -7.24936058e-07f, -3.73825799e-07f, -1.86254269e-07f,
        -8.97117758e-08f, -4.17929549e-08f
    },
};

// max(0, x) less the tail of |x|, in pieces of cubics: absolute error 5e-7. Four table lookups do
// not go to the multiply pipes.
template <int N>
OBERT_INLINE void gelu_erf_by_lookup(F32 (&x)[N]) {
  // Added, it leaves the nearest whole number in the lowest bits.
  const F32 magic = set(0x1.8p23f), scale = set(kGeluPieces / kGeluBorder);
  F32 t[N], y[N];
  I32 piece[N];
  for (int i = 0; i < N; ++i) {
    const F32 a = min(set(kGeluBorder), abs(x[i]));
    const F32 rounded = fma(a, scale, magic);
    piece[i] = as_int(rounded);
    t[i] = fma(a, scale, sub(magic, rounded));
  }
  for (int i = 0; i < N; ++i)
    y[i] = fma(lookup(kGeluTail[3], piece[i]), t[i], lookup(kGeluTail[2], piece[i]));
  for (int i = 0; i < N; ++i) y[i] = fma(y[i], t[i], lookup(kGeluTail[1], piece[i]));
  for (int i = 0; i < N; ++i) y[i] = fma(y[i], t[i], lookup(kGeluTail[0], piece[i]));
  for (int i = 0; i < N; ++i) x[i] = sub(max(set(0.f), x[i]), y[i]);
}

// x * (1/2 + odd polynomial), in the variable 2 x^2 / c^2 - 1, which keeps the coefficients small:
// absolute error 1e-6 (relative above 5). Even and odd powers are chains of their own.
template <int N>
OBERT_INLINE void gelu_erf_by_polynomial(F32 (&x)[N]) {
  static constexpr float kBorder = 5.2f, kScale = .0739645f;  // 2 / border^2, rounded down: u stays within 1
  static constexpr int kPowers = 14;
  static constexpr float c[kPowers] = {
      1.359499813e-01f,  -6.774361820e-02f, 5.002561482e-02f,  -3.993198600e-02f, 3.197392265e-02f,
      -2.469884168e-02f, 1.803873520e-02f,  -1.261963947e-02f, 8.365190548e-03f,  -4.542380043e-03f,
      2.005075186e-03f,  -1.468688433e-03f, 1.188728365e-03f,  -3.882725462e-04f};
  F32 t[N], u[N], square[N], even[N], odd[N];
  for (int i = 0; i < N; ++i) {
    x[i] = max(set(-kBorder), x[i]);  // below, the result is 0 within the error: not x * 1e-7
    t[i] = min(set(kBorder), x[i]);
    u[i] = fma(mul(t[i], t[i]), set(kScale), set(-1.f));
    square[i] = mul(u[i], u[i]);
    even[i] = set(c[kPowers - 2]);
    odd[i] = set(c[kPowers - 1]);
  }
#pragma GCC unroll 16
  for (int k = kPowers - 4; k >= 0; k -= 2) {
    for (int i = 0; i < N; ++i) even[i] = fma(even[i], square[i], set(c[k]));
    for (int i = 0; i < N; ++i) odd[i] = fma(odd[i], square[i], set(c[k + 1]));
  }
  for (int i = 0; i < N; ++i) x[i] = mul(x[i], fma(fma(odd[i], u[i], even[i]), t[i], set(.5f)));
}

template <int N>
OBERT_INLINE void gelu_erf(F32 (&x)[N]) {
  if constexpr (kFastLookup) gelu_erf_by_lookup(x);
  else gelu_erf_by_polynomial(x);
}

}  // namespace
}  // namespace obert
