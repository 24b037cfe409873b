// Tiles: the emulated registers against the manual, packing against the dense matrix, products on
// emulated registers against dense sums.
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <stdexcept>

#include "cases.h"
#include "check.h"
#include "emulated_amx.h"
#include "tile_machine.h"

using namespace obert;

namespace {

TileConfig shapes(int rows, int bytes) {
  TileConfig c = kFullTiles;
  for (int t = 0; t < kTileRegisters; ++t) {
    c.rows[t] = static_cast<uint8_t>(rows);
    c.row_bytes[t] = static_cast<uint16_t>(bytes);
  }
  return c;
}

template <class Run>
bool refused(const Run& run) {
  try {
    run();
  } catch (const std::logic_error&) {
    machine_release();
    return true;
  }
  machine_release();
  return false;
}

void check_registers() {
  Random random(1);
  for (int rows : {1, 7, 16})
    for (int depth : {1, 5, 16})
      for (int columns : {1, 9, 16}) {
        TileConfig c = shapes(rows, columns * 4);
        c.row_bytes[1] = static_cast<uint16_t>(depth * 4);
        c.rows[2] = static_cast<uint8_t>(depth);
        machine_configure(c);
        constexpr int kStride = 80;
        int8_t a[16 * kStride];
        uint8_t b[16 * kStride];
        int32_t sum[16][16];
        for (int8_t& v : a) v = static_cast<int8_t>(random.integer(-128, 127));
        for (uint8_t& v : b) v = static_cast<uint8_t>(random.integer(0, 255));
        for (auto& row : sum)
          for (int32_t& v : row) v = random.integer(-1000, 1000);
        int32_t before[16][16];
        std::copy(&sum[0][0], &sum[0][0] + 256, &before[0][0]);
        machine_load(0, sum, sizeof *sum);
        machine_load(1, a, kStride);
        machine_load(2, b, kStride);
        machine_dot(0, 1, 2);
        machine_store(0, sum, sizeof *sum);
        machine_release();
        for (int m = 0; m < 16; ++m)
          for (int n = 0; n < 16; ++n) {
            int32_t want = before[m][n];
            for (int k = 0; m < rows && n < columns && k < depth * 4; ++k)
              want += a[m * kStride + k] * b[k / 4 * kStride + n * 4 + k % 4];
            CHECK(sum[m][n] == want, "%d x %d x %d at %d %d: %d, got %d", rows, depth, columns, m, n, want, sum[m][n]);
          }
      }
}

float of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
uint16_t upper_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

// Products of bfloat16: small integers, whose sums are exact in any order, and what the manual says of
// rounding, order, denormals and numbers that are none.
void check_floats() {
  Random random(2);
  for (int rows : {1, 7, 16})
    for (int depth : {1, 5, 16})
      for (int columns : {1, 9, 16}) {
        TileConfig c = shapes(rows, columns * 4);
        c.row_bytes[1] = static_cast<uint16_t>(depth * 4);
        c.rows[2] = static_cast<uint8_t>(depth);
        machine_configure(c);
        uint16_t a[16][32], b[16][32];
        float sum[16][16], before[16][16];
        for (int i = 0; i < 16; ++i)
          for (int j = 0; j < 32; ++j) {
            a[i][j] = upper_half(static_cast<float>(random.integer(-100, 100)));
            b[i][j] = upper_half(static_cast<float>(random.integer(-100, 100)));
            before[i][j / 2] = sum[i][j / 2] = static_cast<float>(random.integer(-1000, 1000));
          }
        machine_load(0, sum, sizeof *sum);
        machine_load(1, a, sizeof *a);
        machine_load(2, b, sizeof *b);
        machine_dot_bf16(0, 1, 2);
        machine_store(0, sum, sizeof *sum);
        machine_release();
        for (int m = 0; m < 16; ++m)
          for (int n = 0; n < 16; ++n) {
            float want = before[m][n];
            for (int k = 0; m < rows && n < columns && k < depth * 2; ++k)
              want += of_bits(uint32_t{a[m][k]} << 16) * of_bits(uint32_t{b[k / 2][n * 2 + k % 2]} << 16);
            CHECK(sum[m][n] == want, "%d x %d x %d at %d %d: %g, got %g", rows, depth, columns, m, n, want, sum[m][n]);
          }
      }

  // One row, one column: pairs[k] are the two products of dword k, each of a number and 1 unless said.
  const auto dot = [](float before, std::initializer_list<float> left, std::initializer_list<float> right) {
    TileConfig c = shapes(1, 4);
    const int depth = static_cast<int>(left.size() + 1) / 2;
    c.row_bytes[1] = static_cast<uint16_t>(depth * 4);
    c.rows[2] = static_cast<uint8_t>(depth);
    machine_configure(c);
    uint16_t a[32] = {}, b[32] = {};
    int i = 0;
    for (float x : left) a[i++] = upper_half(x);
    i = 0;
    for (float x : right) b[i++] = upper_half(x);
    machine_load(0, &before, 4);
    machine_load(1, a, 64);
    machine_load(2, b, 4);
    machine_dot_bf16(0, 1, 2);
    machine_store(0, &before, 4);
    machine_release();
    return before;
  };
  const float tiny = 0x1p-130f, small = 0x1p-100f;
  CHECK(dot(0, {tiny, 0}, {0x1p100f, 0}) == 0, "denormals come in as zeros");
  CHECK(dot(0, {small, 0}, {small, 0}) == 0, "and go out as zeros");
  CHECK(dot(tiny, {0, 0}, {0, 0}) == 0, "of the sum too");
  CHECK(dot(0, {0x1.8p-126f, 0, -0x1p-126f, 0}, {1, 0, 1, 0}) == 0, "and between two products");
  CHECK(dot(1, {0x1p-24f, 0x1p-24f}, {1, 1}) == 1 + 0x1p-23f, "products add up before they meet the sum");
  CHECK(dot(0, {1, 0x1p-24f, 0x1p-24f, 0}, {1, 1, 1, 0}) == 1, "first halves apart from second halves");
  CHECK(std::isnan(dot(0, {INFINITY, 0}, {0, 0})), "an infinity and zero");
  CHECK(std::isnan(dot(0, {INFINITY, -INFINITY}, {1, 1})), "two infinities");
  CHECK(dot(0, {INFINITY, 1}, {2, 1}) == INFINITY, "an infinity");
  CHECK(std::isnan(dot(NAN, {1, 1}, {1, 1})) && std::isnan(dot(0, {NAN, 1}, {0, 1})), "NaN");
}

void check_refusals() {
  const auto configured = [](const TileConfig& c) { return !refused([&] { machine_configure(c); }); };
  TileConfig c = kFullTiles;
  CHECK(configured(c), "full tiles");
  c.palette = 2;
  CHECK(!configured(c), "a palette that does not exist");
  c = kFullTiles, c.reserved[3] = 1;
  CHECK(!configured(c), "a reserved byte");
  c = kFullTiles, c.rows[2] = 17;
  CHECK(!configured(c), "17 rows");
  c = kFullTiles, c.row_bytes[2] = 68;
  CHECK(!configured(c), "68 bytes a row");
  c = kFullTiles, c.rows[2] = 0;
  CHECK(!configured(c), "bytes without rows");
  c = kFullTiles, c.rows[8] = 1;
  CHECK(!configured(c), "a ninth register");
  CHECK(refused([] { machine_zero(0); }), "no configuration");
  const auto dot = [](const TileConfig& with, int a, int b, int sum) {
    return !refused([&] {
      machine_configure(with);
      machine_dot(sum, a, b);
    });
  };
  CHECK(dot(kFullTiles, 4, 6, 0), "full tiles");
  CHECK(!dot(kFullTiles, 4, 4, 0) && !dot(kFullTiles, 4, 6, 6), "one register twice");
  CHECK(!dot(kFullTiles, 4, 8, 0), "a register that does not exist");
  const auto float_dot = [](int a, int b, int sum) {
    return !refused([&] {
      machine_configure(kFullTiles);
      machine_dot_bf16(sum, a, b);
    });
  };
  CHECK(float_dot(4, 6, 0) && !float_dot(4, 4, 0) && !float_dot(4, 6, 6), "one register twice, of floats");
  c = kFullTiles, c.rows[6] = 15;
  CHECK(!dot(c, 4, 6, 0), "operands of different depth");
  c = kFullTiles, c.rows[4] = 15;
  CHECK(!dot(c, 4, 6, 0), "rows that differ");
  c = kFullTiles, c.row_bytes[0] = 60;
  CHECK(!dot(c, 4, 6, 0), "columns that differ");
  c = shapes(1, 6);
  CHECK(!dot(c, 4, 6, 0), "half a dword");
  c = kFullTiles, c.rows[6] = 0, c.row_bytes[6] = 0;
  CHECK(!dot(c, 4, 6, 0), "a register that is not configured");
}

enum class Values { kByte, kAsymmetric, kAny, kExtreme };

void check_product(int rows, int inputs, int groups, double density, Values values) {
  Random random(static_cast<uint32_t>(rows * 1009 + inputs * 31 + groups));
  const int most = values == Values::kByte ? 127 : values == Values::kAsymmetric ? 255 : 32767;
  std::vector<int16_t> w = random_weights(random, rows, inputs, density, -most - (most != 255), most);
  Buffer<uint8_t> x(panel_bytes(static_cast<size_t>(inputs)));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(random.integer(0, 255));
  if (values == Values::kExtreme) {
    for (int16_t& v : w)
      if (v) v = v < 0 ? -128 : 127;
    for (size_t i = 0; i < x.size(); ++i) x[i] = 255;
  }
  SparseInt8 view;
  const TilesInt8Storage packed = pack_tiles(w.data(), rows, inputs);
  view.rows = rows;
  view.tiles = packed.view();
  std::vector<const Kernels*> tables = emulated_amx_tables();
  tables.push_back(find_kernels("portable"));
  if (const Kernels* amx = find_kernels("amx")) tables.push_back(amx);
  for (const Kernels* k : tables)
    for (const auto& [begin, end] : {std::pair(0, rows), std::pair(rows / 8 * 4, rows), std::pair(0, std::min(rows, 20))}) {
      Buffer<int32_t> acc(static_cast<size_t>(end - begin) * kPanel, -7);
      k->multiply_int8(view, x.data(), groups, begin, end, acc.data());
      CHECK(!machine_configured(), "%s keeps its registers", k->name);
      for (int r = begin; r < end; ++r)
        for (int t = 0; t < kPanel; ++t) {
          int64_t sum = t < groups * kGroup ? 0 : -7;   // what lies beyond is not written
          for (int i = 0; i < inputs && t < groups * kGroup; ++i)
            sum += w[static_cast<size_t>(r) * inputs + i] * x[(static_cast<size_t>(i / 4) * kPanel + t) * 4 + i % 4];
          const int32_t got = acc[static_cast<size_t>(r - begin) * kPanel + t];
          if (!CHECK(static_cast<int32_t>(sum) == got, "%s %d x %d, %d groups, rows %d to %d, row %d token %d: %d, got %d",
                     k->name, rows, inputs, groups, begin, end, r, t, static_cast<int32_t>(sum), got))
            return;
        }
    }
}

void check_packing() {
  Random random(3);
  // Tiles without a block are not there; one with most of its blocks is whole, others are masked.
  std::vector<int16_t> w(size_t{32} * 128);
  w[20 * 128 + 5] = 9;
  TilesInt8Storage s = pack_tiles(w.data(), 32, 128);
  CHECK(s.place.size() == 1 && s.kept == 1 && s.place[0] == 0 && s.start == std::vector<uint32_t>({0, 0, 1}), "one tile of four");
  for (int r = 0; r < 16; ++r)
    for (int i = 64; i < 128; ++i) w[static_cast<size_t>(r) * 128 + i] = 3;
  s = pack_tiles(w.data(), 32, 128);
  CHECK(s.place.size() == 2 && s.place[0] == (kWholeTile | 1) && s.kept == 257, "a whole tile");
  CHECK(reinterpret_cast<uintptr_t>(s.view().stream) % 64 == 0, "an aligned stream");
  CHECK(pack_tiles(w.data(), 0, 0).place.empty(), "nothing of nothing");

  CHECK(tiles_pay(10, 2560) && tiles_pay(10, 512) && tiles_pay(1, 32), "dense and at 80%% zeros");
  CHECK(!tiles_pay(1, 31) && !tiles_pay(10, 256) && !tiles_pay(0, 0), "at 90%% zeros, and nothing");
  Packing tiles;
  tiles.tiles = true;
  const std::vector<int16_t> dense = random_weights(random, 64, 256, .2, -127, 127),
                             sparse = random_weights(random, 64, 256, .03, -127, 127);
  CHECK(pack_sparse_int8(dense.data(), 64, 256, tiles).view().tiles.start, "tiles where they pay");
  CHECK(!pack_sparse_int8(sparse.data(), 64, 256, tiles).view().tiles.start, "blocks where they do not");
  CHECK(!pack_sparse_int8(dense.data(), 64, 256, {}).view().tiles.start, "blocks where they are asked for");
}

}  // namespace

int main() {
  check_registers();
  check_floats();
  check_refusals();
  check_packing();
  for (int rows : {1, 4, 15, 16, 17, 33})
    for (int inputs : {1, 3, 4, 60, 63, 64, 65, 128, 129})
      check_product(rows, inputs, 1 + (rows + inputs) % 4, .5, Values::kByte);
  // Around the border of a chunk, six tiles of 64 inputs, and past the ring of eight.
  for (int groups = 1; groups <= 4; ++groups)
    for (int inputs : {383, 384, 385, 449, 771})
      for (double density : {0., .05, .3, 1.}) check_product(37, inputs, groups, density, Values::kByte);
  check_product(150, 200, 4, .2, Values::kByte);
  for (double density : {.2, 1.}) {
    check_product(20, 130, 4, density, Values::kAsymmetric);
    check_product(20, 130, 3, density, Values::kAny);
    check_product(18, 132, 4, density, Values::kExtreme);
  }
  return check::report("tiles");
}
