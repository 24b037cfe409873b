// Rotary position embedding, tokens in lanes. Include after a simd_<isa>.h.
//
// Bound by loads: four of tables, which all heads of a panel share, and two of x for two results.
#pragma once

namespace obert {
namespace {

void rotate(const Rotary& rotary, int groups) {
  const Rotary r = rotary;   // of what its address is known the compiler would have to read anew after every store
  const int half = r.head_dim / 2, tokens = groups * kGroup;
  const size_t second = static_cast<size_t>(half) * kPanel, other = r.halves ? 0 : second;   // rows of x, rows of tables
  for (int head = 0; head < r.features; head += r.head_dim)
    for (int d = 0; d < half; ++d) {
      const size_t row = static_cast<size_t>(d) * kPanel;
      const float *x = r.x + static_cast<size_t>(head) * kPanel + row, *cosine = r.cosine + row, *sine = r.sine + row;
      float* out = r.out + static_cast<size_t>(head) * kPanel + row;
      for (int t = 0; t < tokens; t += kLanes) {
        const F32 a = load(x + t), b = load(x + second + t);
        store(out + t, fnma(b, load(sine + t), mul(a, load(cosine + t))));
        store(out + second + t, fma(a, load(sine + other + t), mul(b, load(cosine + other + t))));
      }
    }
}

}  // namespace
}  // namespace obert
