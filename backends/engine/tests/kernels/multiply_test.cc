// Products: portable against plain dense sums, every other table against portable.
#include "cases.h"
#include "check.h"

using namespace obert;

namespace {

enum class Values { kRandom, kAsymmetric, kExtreme };

// Packed for tables that saturate, which every table computes from, or for those that do not.
void check_int8(int rows, int inputs, int groups, double density, Values values, bool saturates) {
  Random random(static_cast<uint32_t>(rows * 1009 + inputs * 31 + groups));
  const int low = values == Values::kAsymmetric ? -255 : -128,
            high = values == Values::kAsymmetric ? 255 : 127;
  std::vector<int16_t> w = random_weights(random, rows, inputs, density, low, high);
  if (values == Values::kExtreme)
    for (int16_t& v : w)
      if (v) v = random.chance(.5) ? 127 : -128;
  Buffer<uint8_t> x(panel_bytes(static_cast<size_t>(inputs)));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = values == Values::kExtreme ? 255 : static_cast<uint8_t>(random.integer(0, 255));
  // In order and filled up, rows whole and not, for half of the tables that do not saturate.
  Packing packing;
  packing.dense_chunk = groups % 2 ? 96 : 5, packing.sparse_chunk = groups % 2 ? 192 : 7;
  packing.saturates = saturates;
  packing.whole = !saturates && inputs % 2;
  packing.fill = saturates ? 1 : inputs % 3 * 4;   // tables that saturate want their rows in order
  const SparseInt8Storage packed = pack_sparse_int8(w.data(), rows, inputs, packing);
  const SparseInt8 view = packed.view();

  Buffer<int32_t> expected(static_cast<size_t>(rows) * kPanel, -1);
  find_kernels("portable")->multiply_int8(view, x.data(), groups, 0, rows, expected.data());
  for (int r = 0; r < rows; ++r)
    for (int t = 0; t < groups * kGroup; ++t) {
      long sum = 0;
      for (int i = 0; i < inputs; ++i)
        sum += static_cast<long>(w[static_cast<size_t>(r) * inputs + i]) *
               x[(static_cast<size_t>(i / 4) * kPanel + t) * 4 + i % 4];
      CHECK(sum == expected[static_cast<size_t>(r) * kPanel + t], "portable row %d token %d: %ld, got %d", r,
            t, sum, expected[static_cast<size_t>(r) * kPanel + t]);
    }

  for (const Kernels* k : tables_under_test()) {
    if (k->packing.saturates && !saturates) continue;
    const int step = packing.fill ? kRowWindow : 4;
    for (int begin : {0, rows > step ? step : 0}) {
      Buffer<int32_t> acc(static_cast<size_t>(rows - begin) * kPanel, -1);
      k->multiply_int8(view, x.data(), groups, begin, rows, acc.data());
      for (int r = begin; r < rows; ++r)
        for (int t = 0; t < groups * kGroup; ++t) {
          const int32_t want = expected[static_cast<size_t>(r) * kPanel + t],
                        got = acc[static_cast<size_t>(r - begin) * kPanel + t];
          if (!CHECK(want == got, "%s %d x %d, %d groups, row %d token %d: %d, got %d", k->name, rows, inputs,
                     groups, r, t, want, got))
            return;
        }
    }
  }
}

void check_float(int rows, int inputs, int groups, double density, bool special, const Packing& packing) {
  Random random(static_cast<uint32_t>(rows * 1009 + inputs * 31 + groups));
  std::vector<float> w(static_cast<size_t>(rows) * inputs);
  for (float& v : w)
    if (random.chance(density)) v = random.normal();
  Buffer<float> x(panel_floats(static_cast<size_t>(inputs)));
  for (size_t i = 0; i < x.size(); ++i) x[i] = random.normal();
  if (special) x[5] = NAN;
  const SparseFloatStorage packed = pack_sparse_float(w.data(), rows, inputs, packing);
  const SparseFloat view = packed.view();
  for (const Kernels* k : tables_under_test()) {
    Buffer<float> acc(static_cast<size_t>(rows) * kPanel), oracle(static_cast<size_t>(rows) * kPanel);
    k->multiply_float(view, x.data(), groups, 0, rows, acc.data());
    find_kernels("portable")->multiply_float(view, x.data(), groups, 0, rows, oracle.data());
    for (int r = 0; r < rows; ++r)
      for (int t = 0; t < groups * kGroup; ++t) {
        double sum = 0, magnitude = 0;
        for (int i = 0; i < inputs; ++i) {
          const float weight = w[static_cast<size_t>(r) * inputs + i];
          if (weight == 0) continue;  // dropped, even where 0 * NaN would show
          const double product = static_cast<double>(weight) * x[static_cast<size_t>(i) * kPanel + t];
          sum += product;
          magnitude += std::fabs(product);
        }
        const size_t at = static_cast<size_t>(r) * kPanel + t;
        CHECK(check::near(sum, oracle[at], 1e-7 * magnitude), "portable row %d token %d: %g, got %g", r, t,
              sum, oracle[at]);
        CHECK(check::near(sum, acc[at], 6e-8 * (inputs + 2) * magnitude), "%s row %d token %d: %g, got %g",
              k->name, r, t, sum, acc[at]);
      }
  }
}

}  // namespace

int main() {
  for (bool saturates : {true, false}) {
    for (int rows = 1; rows <= 9; ++rows)
      for (int inputs = 1; inputs <= 9; ++inputs)
        check_int8(rows, inputs, 1 + (rows + inputs) % 4, .5, Values::kRandom, saturates);
    for (int groups = 1; groups <= 4; ++groups)
      for (double density : {0., .1, .5, 1.})
        for (int inputs : {63, 64, 65, 383, 384, 385, 769}) {
          check_int8(13, inputs, groups, density, Values::kRandom, saturates);
          check_int8(12, inputs, groups, density, Values::kAsymmetric, saturates);
          check_int8(8, inputs, groups, density, Values::kExtreme, saturates);
        }
    check_int8(65, 3072, 4, .2, Values::kRandom, saturates);
    for (int inputs : {385, 397})
      for (double density : {.2, .9, 1.})
        for (int groups : {1, 3, 4}) check_int8(150, inputs, groups, density, Values::kRandom, saturates);
  }
  Packing ordered;
  ordered.float_chunk = 1000;
  ordered.fill = 4;
  for (int groups = 1; groups <= 4; ++groups)
    for (int inputs : {1, 5, 64, 95, 96, 97, 385})
      for (double density : {0., .1, 1.}) {
        check_float(7, inputs, groups, density, inputs == 64, {});
        // Two windows of rows in the order of their length.
        check_float(70, inputs, groups, density, inputs == 64, ordered);
      }
  return check::report("multiply");
}
