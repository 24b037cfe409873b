// Epilogue: portable against formulas in double, every other table against portable.
// Bounds: floats 1.5e-6 * (1 + |y|) for the activation, quantised values at most 1 apart and then
// only where the exact value is within a fiftieth of a step of the border between two.
#include "cases.h"
#include "check.h"

using namespace obert;

namespace {

double exact(Activation a, double x) {
  switch (a) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x < 0 ? 0 : x;
    case Activation::kGeluErf:
      return x * .5 * std::erfc(-x * std::sqrt(.5));
    case Activation::kGeluTanh:
      return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + .044715 * x * x * x)));
    case Activation::kGeluSigmoid:
      return x / (1 + std::exp(-1.702 * x));
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
  }
  return x;
}

const Activation kActivations[] = {Activation::kNone,        Activation::kRelu, Activation::kGeluErf, Activation::kGeluTanh,
                                   Activation::kGeluSigmoid, Activation::kSilu, Activation::kTanh};

struct Case {
  int rows, begin, groups;
  Activation activation;
  bool residual, factor, out, quantized;
  float step;
};

template <class T>
void check_case(const Case& c, const std::vector<const Kernels*>& tables) {
  Random random(static_cast<uint32_t>(c.rows * 7 + c.groups));
  const size_t rows = static_cast<size_t>(c.rows);
  Buffer<T> acc((rows - static_cast<size_t>(c.begin)) * kPanel);
  for (size_t i = 0; i < acc.size(); ++i) acc[i] = static_cast<T>(random.integer(-4000, 4000));
  Buffer<float> scale(rows), bias(rows), residual(rows * kPanel), factor(rows * kPanel);
  for (size_t i = 0; i < rows; ++i) scale[i] = random.real(5e-4f, 3e-3f), bias[i] = random.normal(.5f);
  for (size_t i = 0; i < residual.size(); ++i) residual[i] = random.normal(), factor[i] = random.normal();
  Epilogue e;
  e.scale = scale.data();
  e.bias = c.rows % 2 ? bias.data() : nullptr;
  e.activation = c.activation;
  e.residual = c.residual ? residual.data() : nullptr;
  e.factor = c.factor ? factor.data() : nullptr;
  e.inverse_scale = 1 / c.step;
  e.zero_point = 7;
  for (const Kernels* k : tables) {
    Buffer<float> out(rows * kPanel, 77.f);
    Buffer<uint8_t> quantized(panel_bytes(rows), 99);
    e.out = c.out ? out.data() : nullptr;
    e.quantized = c.quantized ? quantized.data() : nullptr;
    if constexpr (sizeof(T) == 4 && static_cast<T>(.5) == 0)
      k->finish_int8(e, reinterpret_cast<const int32_t*>(acc.data()), c.groups, c.begin, c.rows);
    else k->finish_float(e, reinterpret_cast<const float*>(acc.data()), c.groups, c.begin, c.rows);
    for (int r = 0; r < (c.rows + 3) / 4 * 4; ++r)
      for (int t = 0; t < kPanel; ++t) {
        const size_t at = static_cast<size_t>(r) * kPanel + t;
        const uint8_t q = quantized[(static_cast<size_t>(r / 4) * kPanel + t) * 4 + r % 4];
        if (r < c.begin || t >= c.groups * kGroup) {
          if (r < c.rows) CHECK(out[at] == 77.f, "%s wrote row %d token %d", k->name, r, t);
          CHECK(q == 99, "%s wrote quantised row %d token %d", k->name, r, t);
          continue;
        }
        if (r >= c.rows) {
          if (c.quantized) CHECK(q == 7, "%s padding row %d token %d: %d", k->name, r, t, q);
          continue;
        }
        const float x = std::fma(static_cast<float>(acc[static_cast<size_t>(r - c.begin) * kPanel + t]),
                                 scale[static_cast<size_t>(r)], e.bias ? bias[static_cast<size_t>(r)] : 0.f);
        double y = exact(c.activation, x), bound = 1.5e-6 * (1 + std::fabs(y));
        if (c.residual) y += residual[at];
        if (c.factor) y *= factor[at], bound *= 1 + std::fabs(factor[at]);
        if (c.out)
          CHECK(check::near(y, out[at], bound), "%s activation %d row %d token %d x %g: %.9g, got %.9g",
                k->name, static_cast<int>(c.activation), r, t, x, y, out[at]);
        if (!c.quantized) continue;
        const double steps = std::fmin(std::fmax(y / c.step + 7, 0), 255);
        CHECK(std::fabs(steps - q) <= .5 + .02 + bound / c.step,
              "%s activation %d row %d token %d: %g steps, got %d", k->name, static_cast<int>(c.activation),
              r, t, steps, q);
      }
  }
}

// Every place where graphs round, against portable. A value at the border between two codes may fall to the other side: a
// step of the rounding, and seldom.
void check_roundings(const std::vector<const Kernels*>& tables, int rows, Activation activation, int places, bool residual, bool out) {
  Random random(static_cast<uint32_t>(rows + places));
  const size_t n = static_cast<size_t>(rows);
  Buffer<int32_t> acc(n * kPanel);
  for (size_t i = 0; i < acc.size(); ++i) acc[i] = random.integer(-4000, 4000);
  Buffer<float> scale(n), shift(n), other(n * kPanel);
  for (size_t i = 0; i < n; ++i) scale[i] = random.real(5e-4f, 3e-3f), shift[i] = random.normal(.5f);
  for (size_t i = 0; i < other.size(); ++i) other[i] = random.normal();
  Epilogue e;
  e.scale = scale.data();
  e.activation = activation;
  e.shift = places & 8 ? shift.data() : nullptr;
  if (places & 1) e.rounding = {.0531f, 110};
  if (places & 2) e.shift_rounding = {.0473f, 120};
  if (places & 4) e.out_rounding = {.0619f, 130};
  e.residual = residual ? other.data() : nullptr;
  e.inverse_scale = 1 / .0619f;
  e.zero_point = 130;
  const auto run = [&](const Kernels* k, Buffer<float>& floats, Buffer<uint8_t>& codes) {
    e.out = out ? floats.data() : nullptr;
    e.quantized = codes.data();
    k->finish_int8(e, acc.data(), 4, 0, rows);
  };
  Buffer<float> want(n * kPanel);
  Buffer<uint8_t> want_codes(panel_bytes(n));
  run(find_kernels("portable"), want, want_codes);
  for (const Kernels* k : tables) {
    Buffer<float> got(n * kPanel);
    Buffer<uint8_t> codes(panel_bytes(n));
    run(k, got, codes);
    int apart = 0;
    for (size_t i = 0; out && i < got.size(); ++i) {
      CHECK(check::near(want[i], got[i], .13), "%s rounded %g, got %g", k->name, want[i], got[i]);
      apart += std::fabs(want[i] - got[i]) > 1e-5f * (1 + std::fabs(want[i]));
    }
    for (size_t i = 0; i < codes.size(); ++i) {
      CHECK(std::abs(want_codes[i] - codes[i]) <= 2, "%s code %d, got %d", k->name, want_codes[i], codes[i]);
      apart += want_codes[i] != codes[i];
    }
    CHECK(apart <= 2 + rows * kPanel / 200, "%s: %d of %d differ", k->name, apart, rows * kPanel);
  }
}

// Values that need care, one per lane: limits of the clamps, infinities, NaN, denormals.
void check_specials(const std::vector<const Kernels*>& tables) {
  const float specials[] = {NAN,      INFINITY, -INFINITY, 0.f,  -0.f,  1e-40f, -1e-40f, 3.4e38f,
                            -3.4e38f, 1e10f,    -1e10f,    5.2f, -5.2f, 90.f,   -90.f,   1e-3f};
  Buffer<float> acc(4 * kPanel);
  for (int i = 0; i < 4 * kPanel; ++i) acc[static_cast<size_t>(i)] = specials[i % 16];
  for (const Kernels* k : tables)
    for (Activation a : kActivations) {
      Buffer<float> out(4 * kPanel);
      Buffer<uint8_t> quantized(4 * kPanel);
      Epilogue e;
      e.activation = a;
      e.out = out.data();
      e.quantized = quantized.data();
      e.zero_point = 3;
      k->finish_float(e, acc.data(), 1, 0, 4);
      for (int t = 0; t < 16; ++t) {
        const float x = specials[t];
        double y = exact(a, x);
        if (std::isinf(x) && x < 0 && std::isnan(y)) continue;  // -inf * 0: NaN or 0, both are right
        if (y < -3.4028235e38) y = -INFINITY;
        CHECK(check::near(y, out[static_cast<size_t>(t)], 2e-6 * (1 + std::fabs(y))),
              "%s activation %d of %g: %g, got %g", k->name, static_cast<int>(a), x, y,
              out[static_cast<size_t>(t)]);
        const int want =
            std::isnan(y) ? 0 : static_cast<int>(std::nearbyint(std::fmin(std::fmax(y, -3), 252))) + 3;
        CHECK(std::abs(want - quantized[static_cast<size_t>(t) * 4]) <= 0 || std::fabs(y) < 1e3,
              "%s activation %d of %g: %d, got %d", k->name, static_cast<int>(a), x, want,
              quantized[static_cast<size_t>(t) * 4]);
      }
    }
}

// Every activation over a fine grid.
void check_grid(const std::vector<const Kernels*>& tables) {
  Buffer<float> acc(64 * kPanel);
  for (size_t i = 0; i < acc.size(); ++i)
    acc[i] = -16.f + 32.f * static_cast<float>(i) / static_cast<float>(acc.size());
  for (const Kernels* k : tables)
    for (Activation a : kActivations) {
      Buffer<float> out(acc.size());
      Epilogue e;
      e.activation = a;
      e.out = out.data();
      k->finish_float(e, acc.data(), 4, 0, 64);
      for (size_t i = 0; i < acc.size(); ++i) {
        const double y = exact(a, acc[i]);
        CHECK(check::near(y, out[i], 1e-6 * std::fmax(1, std::fabs(y))),
              "%s activation %d of %.9g: %.9g, got %.9g", k->name, static_cast<int>(a), acc[i], y, out[i]);
      }
    }
}

}  // namespace

int main() {
  std::vector<const Kernels*> tables = tables_under_test();
  tables.push_back(find_kernels("portable"));
  for (Activation a : kActivations)
    for (int rows : {1, 2, 3, 4, 5, 8, 9, 65})
      for (int groups = 1; groups <= 4; ++groups)
        for (int flags = 1; flags < 16; ++flags) {
          if (!(flags & 3)) continue;
          const Case c{rows,
                       rows > 4 ? 4 : 0,
                       groups,
                       a,
                       (flags & 4) != 0,
                       (flags & 8) != 0,
                       (flags & 1) != 0,
                       (flags & 2) != 0,
                       rows % 2 ? .03f : .0009f};
          check_case<int32_t>(c, tables);
          check_case<float>(c, tables);
        }
  check_specials(tables);
  check_grid(tables);
  for (int rows : {3, 8})
    for (int places = 1; places < 16; ++places)
      for (Activation activation : {Activation::kNone, Activation::kGeluErf})
        for (bool residual : {false, true})
          for (bool out : {false, true}) check_roundings(tables, rows, activation, places, residual, out);
  return check::report("finish");
}
