// The packed form keeps the rule of kernels.h and adds up to the dense matrix.
#include "cases.h"
#include "check.h"

using namespace obert;

namespace {

void check_case(int rows, int inputs, double density, int low, int high, bool saturates, int fill = 0, bool whole = false,
                int chunk = 96) {
  Random random(static_cast<uint32_t>(rows + inputs));
  const std::vector<int16_t> w = random_weights(random, rows, inputs, density, low, high);
  Packing packing;
  packing.dense_chunk = chunk, packing.sparse_chunk = 2 * chunk;
  packing.saturates = saturates, packing.whole = whole, packing.fill = fill;
  const SparseInt8Storage s = pack_sparse_int8(w.data(), rows, inputs, packing);
  std::vector<int> sum(w.size());
  CHECK(s.chunk_blocks <= std::min(kChunkBlocks, 2 * chunk), "%d blocks in a chunk", s.chunk_blocks);
  CHECK(s.start.size() == static_cast<size_t>(s.chunks) * rows + 1 && s.start.back() == s.index.size() &&
            s.value.size() == 4 * s.index.size(),
        "sizes of %d x %d", rows, inputs);
  const size_t places = static_cast<size_t>(s.chunks) * rows;
  CHECK(s.order.size() == (fill ? places : 0) && s.whole.size() == (whole ? places : 0) && s.row_blocks.size() == (saturates ? places : 0),
        "%zu ordered, %zu whole, %zu with couples", s.order.size(), s.whole.size(), s.row_blocks.size());
  for (int c = 0; c < s.chunks; ++c)
    for (int p = 0; p < rows; ++p) {
      const size_t at = static_cast<size_t>(c) * rows + p;
      const int r = fill ? p / kRowWindow * kRowWindow + s.order[at] : p;
      const uint32_t count = s.start[at + 1] - s.start[at];
      const int of_chunk = std::min(s.chunk_blocks, (inputs + 3) / 4 - c * s.chunk_blocks);
      const bool all = whole && s.whole[at];
      if (fill) CHECK(all || count % fill == 0, "%u blocks of a row", count);
      if (fill && p % kRowWindow) {
        const auto ends = [&](size_t i) { return std::pair(saturates ? s.row_blocks[i].couples : 0, s.start[i + 1] - s.start[i]); };
        CHECK(ends(at) >= ends(at - 1), "place %d keeps fewer couples or blocks than the one before", p);
      }
      if (all) CHECK(count == static_cast<uint32_t>(of_chunk), "%u of %d blocks", count, of_chunk);
      if (whole && density == 1. && high < 128 && of_chunk > 8) CHECK(all, "row %d is not whole", r);
      for (uint32_t b = s.start[at]; b < s.start[at + 1]; ++b) {
        const int8_t* v = &s.value[b * size_t{4}];
        const uint32_t place = b - s.start[at];
        const bool couple = saturates && place % 2 == 0 && place < 2u * s.row_blocks[at].couples;
        if (all) CHECK(s.index[b] == place, "block %u of a whole row is %d", place, s.index[b]);
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
    }
  size_t kept = 0;
  for (size_t i = 0; i < w.size(); i += inputs % kBlock ? 1 : kBlock)
    kept += inputs % kBlock == 0 && (w[i] || w[i + 1] || w[i + 2] || w[i + 3]);
  if (!saturates && !whole && fill < 2 && low == -128 && kept) CHECK(s.index.size() == kept, "%zu blocks for %zu", s.index.size(), kept);
  for (size_t i = 0; i < w.size(); ++i)
    CHECK(sum[i] == w[i], "%d x %d at %zu: %d, got %d", rows, inputs, i, w[i], sum[i]);
}

// The first block fits all others, the last two only it or none: who takes the smallest partner leaves two alone.
void check_partners() {
  const std::vector<int16_t> w = {20, 0, 20, 0, 100, 0, 0, 0, 0, 0, 100, 0, 90, 0, 90, 0};
  Packing packing;
  packing.saturates = true;
  const SparseInt8Storage s = pack_sparse_int8(w.data(), 1, static_cast<int>(w.size()), packing);
  CHECK(s.row_blocks[0].couples == 2, "%d couples of 4 blocks", s.row_blocks[0].couples);
}

}  // namespace

int main() {
  check_partners();
  for (int inputs : {1, 3, 4, 5, 383, 384, 385, 768, 3072})
    for (double density : {0., .1, .5, 1.}) {
      for (int fill : {0, 1}) {
        check_case(5, inputs, density, -127, 127, true, fill);
        check_case(5, inputs, density, -128, 127, true, fill);
        check_case(5, inputs, density, -255, 255, true, fill);
        check_case(5, inputs, density, -32768, 32767, true, fill);
      }
      check_case(2, inputs, density, -128, 127, false);
      check_case(2, inputs, density, -32768, 32767, false);
      check_case(2, inputs, density, -128, 127, false, 4, true, 1000);
      for (int rows : {3, 64, 70})
        for (int fill : {0, 1, 4}) {
          if (inputs > 400 && rows > 3) continue;
          check_case(rows, inputs, density, -128, 127, false, fill, true);
          check_case(rows, inputs, density, -255, 255, false, fill, true);
        }
    }
  return check::report("pack_sparse");
}
