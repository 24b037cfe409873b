// Layer normalisation against sums in double. Bound: 4e-6 * (1 + |gamma|) * (1 + |x - mean| / deviation)
// + |beta| * 1e-6, and what the rounding of x in float makes of a small deviation.
#include "cases.h"
#include "check.h"

using namespace obert;

namespace {

struct Results {
  bool floats, codes, rounded = false;   // floats that are what the codes stand for
};

void check_case(int features, int groups, bool residual, bool centred, Results results, const std::vector<const Kernels*>& tables) {
  const bool special = features == 64;
  Random random(static_cast<uint32_t>(features + groups));
  const size_t n = static_cast<size_t>(features);
  Buffer<float> x(n * kPanel), r(n * kPanel), gamma(n), beta(n);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 3.f + random.normal(2.f), r[i] = random.normal();
  for (size_t i = 0; i < n; ++i) gamma[i] = random.normal(), beta[i] = random.normal();
  if (special) x[3] = NAN, x[4] = INFINITY;
  for (const Kernels* k : tables) {
    Buffer<float> out(n * kPanel, 77.f);
    Buffer<uint8_t> quantized(panel_bytes(n), 99);
    LayerNorm l;
    l.features = features;
    l.gamma = gamma.data();
    l.beta = (features + groups) % 2 ? beta.data() : nullptr;
    l.epsilon = 1e-12f;
    l.centred = centred;
    l.x = x.data();
    l.residual = residual ? r.data() : nullptr;
    l.out = results.floats ? out.data() : nullptr;
    l.quantized = results.codes ? quantized.data() : nullptr;
    l.inverse_scale = 30;
    l.zero_point = 120;
    l.out_scale = results.rounded ? 1 / 30.f : 0.f;
    k->layer_norm(l, groups);
    for (int t = 0; t < kPanel; ++t) {
      const auto value = [&](size_t f) {
        return static_cast<double>(x[f * kPanel + t]) + (residual ? r[f * kPanel + t] : 0.f);
      };
      double mean = 0, variance = 0;
      for (size_t f = 0; centred && f < n; ++f) mean += value(f) / features;
      for (size_t f = 0; f < n; ++f) variance += (value(f) - mean) * (value(f) - mean) / features;
      const double deviation = std::sqrt(variance + 1e-12);
      for (size_t f = 0; f < (n + 3) / 4 * 4; ++f) {
        const int q = quantized[(f / 4 * kPanel + t) * 4 + f % 4];
        if (t >= groups * kGroup) {
          CHECK(q == 99, "%s wrote token %d", k->name, t);
          continue;
        }
        if (f >= n) {
          if (results.codes) CHECK(q == 120, "%s padding %d", k->name, q);
          continue;
        }
        const double normal = (value(f) - mean) / deviation, y = normal * gamma[f] + (l.beta ? beta[f] : 0.f);
        const double bound = 4e-6 * (1 + std::fabs(gamma[f])) * (1 + std::fabs(normal)) +
                             1e-6 * std::fabs(beta[f]) +
                             2e-7 * std::fabs(gamma[f]) * (1 + std::fabs(normal)) * 10 / deviation;
        if (features == 1) continue;  // 0 / sqrt(epsilon): rounding of x is all there is
        if (results.rounded)
          CHECK(out[f * kPanel + t] == static_cast<float>(q - 120) * l.out_scale, "%s code %d stands for %g", k->name, q, out[f * kPanel + t]);
        else if (results.floats)
          CHECK(check::near(y, out[f * kPanel + t], bound), "%s %d features, token %d feature %zu: %g, got %g",
              k->name, features, t, f, y, out[f * kPanel + t]);
        if (!results.codes) CHECK(q == 99, "%s wrote codes that nobody asked for: %d", k->name, q);
        else if (std::isnan(y)) CHECK(q == 0, "%s NaN quantised to %d", k->name, q);
        else
          CHECK(std::fabs(std::fmin(std::fmax(y * 30 + 120, 0), 255) - q) <= .5 + 30 * bound + 1e-4,
                "%s quantised %g, got %d", k->name, y * 30 + 120, q);
      }
    }
  }
}

}  // namespace

int main() {
  std::vector<const Kernels*> tables = tables_under_test();
  tables.push_back(find_kernels("portable"));
  for (int features : {1, 2, 3, 4, 5, 31, 64, 127, 383, 384, 385, 768, 769})
    for (int groups = 1; groups <= 4; ++groups)
      for (bool residual : {false, true})
        for (bool centred : {false, true})
          for (Results results : {Results{true, true}, Results{true, false}, Results{false, true}, Results{true, true, true}})
            check_case(features, groups, residual, centred, results, tables);
  return check::report("layer_norm");
}
