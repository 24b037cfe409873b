// Import and export against index arithmetic, and there and back.
#include <cstring>

#include "cases.h"
#include "check.h"

using namespace obert;

namespace {

void check_case(int tokens, int features, size_t gap, const std::vector<const Kernels*>& tables) {
  Random random(static_cast<uint32_t>(tokens * 100 + features));
  const size_t n = static_cast<size_t>(features), stride = n + gap,
               count = stride * static_cast<size_t>(tokens - 1) + n;
  Buffer<float> rows(count);
  Buffer<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i)
    rows[i] = random.normal(), bytes[i] = static_cast<uint8_t>(random.integer(0, 255));
  const int padded = (tokens + kGroup - 1) / kGroup * kGroup;
  for (const Kernels* k : tables) {
    Buffer<float> panel(n * kPanel, 77.f), back(count, 55.f);
    k->import_float(rows.data(), stride, tokens, features, panel.data());
    for (int f = 0; f < features; ++f)
      for (int t = 0; t < kPanel; ++t) {
        const float want = t < tokens ? rows[static_cast<size_t>(t) * stride + f] : t < padded ? 0.f : 77.f;
        CHECK(panel[static_cast<size_t>(f) * kPanel + t] == want,
              "%s import_float %d x %d: feature %d token %d", k->name, tokens, features, f, t);
      }
    k->export_float(panel.data(), tokens, features, back.data(), stride);
    Buffer<uint8_t> packed(panel_bytes(n), 77), bytes_back(count, 55);
    k->import_uint8(bytes.data(), stride, tokens, features, 9, packed.data());
    for (int f = 0; f < (features + 3) / 4 * 4; ++f)
      for (int t = 0; t < padded; ++t) {
        const int got = packed[(static_cast<size_t>(f / 4) * kPanel + t) * 4 + f % 4];
        if (t < tokens)
          CHECK(got == (f < features ? bytes[static_cast<size_t>(t) * stride + f] : 9),
                "%s import_uint8 %d x %d: feature %d token %d: %d", k->name, tokens, features, f, t, got);
      }
    k->export_uint8(packed.data(), tokens, features, bytes_back.data(), stride);
    for (size_t i = 0; i < count; ++i) {
      const bool inside = i % stride < n;
      CHECK(back[i] == (inside ? rows[i] : 55.f), "%s export_float at %zu", k->name, i);
      CHECK(bytes_back[i] == (inside ? bytes[i] : 55), "%s export_uint8 at %zu", k->name, i);
    }
  }
}

}  // namespace

int main() {
  std::vector<const Kernels*> tables = tables_under_test();
  tables.push_back(find_kernels("portable"));
  for (int tokens : {1, 7, 8, 9, 15, 16, 17, 33, 63, 64})
    for (int features : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 64, 65, 385})
      for (size_t gap : {0, 3}) check_case(tokens, features, gap, tables);
  return check::report("transpose");
}
