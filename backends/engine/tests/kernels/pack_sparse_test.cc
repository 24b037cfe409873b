// The packed form keeps the rule of kernels.h and adds up to the dense matrix.
#include "cases.h"
#include "check.h"

using namespace obert;

namespace {

void check_case(int rows, int inputs, double density, int low, int high) {
  Random random(static_cast<uint32_t>(rows + inputs));
  const std::vector<int16_t> w = random_weights(random, rows, inputs, density, low, high);
  const bool saturates = rows == 5;
  const SparseInt8Storage s = pack_sparse_int8(w.data(), rows, inputs, {96, 192, saturates});
  std::vector<int> sum(w.size());
  CHECK(s.start.size() == static_cast<size_t>(s.chunks) * rows + 1 && s.start.back() == s.index.size() &&
            s.value.size() == 4 * s.index.size(),
        "sizes of %d x %d", rows, inputs);
  for (int c = 0; c < s.chunks; ++c)
    for (int r = 0; r < rows; ++r)
      for (uint32_t b = s.start[static_cast<size_t>(c) * rows + r];
           b < s.start[static_cast<size_t>(c) * rows + r + 1]; ++b) {
        const int8_t* v = &s.value[b * size_t{4}];
        const uint32_t place = b - s.start[static_cast<size_t>(c) * rows + r];
        const bool couple = place % 2 == 0 && place < 2u * s.pairs[static_cast<size_t>(c) * rows + r];
        for (int pair = 0; saturates && pair < 4; pair += 2) {
          int above = 0, below = 0;
          for (int i = pair; i < pair + 2; ++i) (v[i] > 0 ? above : below) += v[i];
          for (int i = pair + 4; couple && i < pair + 6; ++i) (v[i] > 0 ? above : below) += v[i];
          CHECK(above <= 128 && below >= -128, "block %u breaks the pair rule: %d %d", b, above, below);
        }
        CHECK(s.index[b] < s.chunk_blocks, "index %d outside its chunk", s.index[b]);
        for (int i = 0; i < 4; ++i) {
          const int input = (c * s.chunk_blocks + s.index[b]) * 4 + i;
          if (input < inputs) sum[static_cast<size_t>(r) * inputs + input] += v[i];
          else CHECK(v[i] == 0, "weight beyond the last input");
        }
      }
  size_t kept = 0;
  for (size_t i = 0; i < w.size(); i += inputs % kBlock ? 1 : kBlock)
    kept += inputs % kBlock == 0 && (w[i] || w[i + 1] || w[i + 2] || w[i + 3]);
  if (!saturates && low == -128 && kept) CHECK(s.index.size() == kept, "%zu blocks for %zu", s.index.size(), kept);
  for (size_t i = 0; i < w.size(); ++i)
    CHECK(sum[i] == w[i], "%d x %d at %zu: %d, got %d", rows, inputs, i, w[i], sum[i]);
}

}  // namespace

int main() {
  for (int inputs : {1, 3, 4, 5, 383, 384, 385, 768, 3072})
    for (double density : {0., .1, .5, 1.}) {
      check_case(5, inputs, density, -127, 127);
      check_case(5, inputs, density, -128, 127);
      check_case(5, inputs, density, -255, 255);
      check_case(5, inputs, density, -32768, 32767);
      check_case(2, inputs, density, -128, 127);
      check_case(2, inputs, density, -32768, 32767);
    }
  return check::report("pack_sparse");
}
