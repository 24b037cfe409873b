// Rotary position embedding against the formula in double. Bound: 3e-7 of the sizes of both products.
#include "cases.h"
#include "check.h"

using namespace obert;

namespace {

void check_case(int heads, int head_dim, int groups, bool halves, const std::vector<const Kernels*>& tables) {
  Random random(static_cast<uint32_t>(heads * 1000 + head_dim + groups));
  const size_t features = static_cast<size_t>(heads) * static_cast<size_t>(head_dim), half = static_cast<size_t>(head_dim) / 2;
  Buffer<float> x(features * kPanel), cosine((halves ? 1 : 2) * half * kPanel), sine(cosine.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = random.normal();
  // Halves of tables need not be alike.
  for (size_t i = 0; i < cosine.size(); ++i) cosine[i] = random.real(-1, 1), sine[i] = random.real(-1, 1);
  x[3] = NAN;
  for (const Kernels* k : tables) {
    Buffer<float> out(x.size(), 77.f);
    Rotary r;
    r.features = static_cast<int>(features);
    r.head_dim = head_dim;
    r.halves = halves;
    r.x = x.data(), r.cosine = cosine.data(), r.sine = sine.data(), r.out = out.data();
    k->rotate(r, groups);
    for (size_t f = 0; f < features; ++f)
      for (size_t t = 0; t < kPanel; ++t) {
        const float got = out[f * kPanel + t];
        if (t >= static_cast<size_t>(groups * kGroup)) {
          CHECK(got == 77.f, "%s wrote token %zu", k->name, t);
          continue;
        }
        const size_t d = f % (2 * half), first = f - d;
        const size_t other = first + (d < half ? d + half : d - half);
        const size_t row = halves ? d % half : d;
        const double plain = static_cast<double>(x[f * kPanel + t]) * cosine[row * kPanel + t];
        const double turned = static_cast<double>(x[other * kPanel + t]) * sine[row * kPanel + t] * (d < half ? -1 : 1);
        CHECK(check::near(plain + turned, got, 3e-7 * (std::fabs(plain) + std::fabs(turned)) + 1e-30),
              "%s %d heads of %d, feature %zu token %zu: %g, got %g", k->name, heads, head_dim, f, t, plain + turned, got);
      }
  }
}

}  // namespace

int main() {
  std::vector<const Kernels*> tables = tables_under_test();
  tables.push_back(find_kernels("portable"));
  for (int heads : {1, 2, 12})
    for (int head_dim : {2, 6, 16, 64, 80})
      for (int groups : {1, 2, 3, 4})
        for (bool halves : {false, true}) check_case(heads, head_dim, groups, halves, tables);
  return check::report("rotary");
}
