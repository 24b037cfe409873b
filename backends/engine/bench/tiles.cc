// What binds a loop of tile products: orders of loads and multiplications over data in the first-level
// cache, one core, minimum of repeats. Needs AMX.
//   tiles_bench
// Times are in cycles of the multiplier, 16 of which a `tdpbsud` takes when nothing holds it up, for
// four multiplications. The loop of multiply_tiles.h is "one strip". On a Xeon of family 6 model 207 all
// orders take about 70: nothing waits for a register that is still being read, and more blocking does not pay.
// "expanded by stores" shows what a load costs that follows the stores of its rows too closely.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "select.h"
#include "tile_amx.h"

using namespace obert;

namespace {

constexpr int kSteps = 6;                // as many tiles of inputs as a chunk of pack_tiles.cc has
constexpr size_t kTile = 1024, kRow = 64, kPanelRow = 256;
alignas(64) uint8_t weights[2 * kSteps * kTile], inputs[kSteps * 4 * kTile], stored[8 * kTile];
alignas(64) int32_t sums[4][256];

template <class Run>
double seconds(const Run& run) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int repeat = 0; repeat < 12; ++repeat) {
    const auto begin = Clock::now();
    run();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

const uint8_t* panel(int step) { return inputs + static_cast<size_t>(step) * 4 * kTile; }

void zero() {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
}

void store() {
  tile_store<0>(sums[0], kRow);
  tile_store<1>(sums[1], kRow);
  tile_store<2>(sums[2], kRow);
  tile_store<3>(sums[3], kRow);
}

void registers(int) {
  tile_dot<0, 4, 6>();
  tile_dot<1, 4, 7>();
  tile_dot<2, 5, 6>();
  tile_dot<3, 5, 7>();
}

void chain(int) {
  for (int i = 0; i < 4; ++i) tile_dot<0, 4, 6>();
}

template <size_t Stride>
void loads(int step) {
  const uint8_t* x = panel(step);
  tile_load<4>(x, Stride);
  tile_load<5>(x + kRow, Stride);
  tile_load<6>(x + 2 * kRow, Stride);
  tile_load<7>(x + 3 * kRow, Stride);
}

// One register is loaded, read and loaded again: without renaming each turn takes the whole latency.
void reload(int step) {
  for (int i = 0; i < 4; ++i) {
    tile_load<6>(panel(step) + i * kRow, kPanelRow);
    tile_dot<0, 4, 6>();
  }
}

void multiply_strip(const uint8_t* a, const uint8_t* x) {
  tile_load<4>(a, kRow);
  tile_load<6>(x, kPanelRow);
  tile_dot<0, 4, 6>();
  tile_load<7>(x + kRow, kPanelRow);
  tile_dot<1, 4, 7>();
  tile_load<6>(x + 2 * kRow, kPanelRow);
  tile_dot<2, 4, 6>();
  tile_load<7>(x + 3 * kRow, kPanelRow);
  tile_dot<3, 4, 7>();
}

void one_strip(int step) { multiply_strip(weights + static_cast<size_t>(step) * kTile, panel(step)); }

// The same with the loads of inputs ahead, in three registers.
void one_strip_ahead(int step) {
  const uint8_t* x = panel(step);
  tile_load<4>(weights + static_cast<size_t>(step) * kTile, kRow);
  tile_load<5>(x, kPanelRow);
  tile_load<6>(x + kRow, kPanelRow);
  tile_load<7>(x + 2 * kRow, kPanelRow);
  tile_dot<0, 4, 5>();
  tile_load<5>(x + 3 * kRow, kPanelRow);
  tile_dot<1, 4, 6>();
  tile_dot<2, 4, 7>();
  tile_dot<3, 4, 5>();
}

// Two strips of 16 rows by two runs of 16 tokens: every tile that is loaded serves two products.
void two_strips(int step) {
  const uint8_t* x = panel(step);
  tile_load<4>(weights + static_cast<size_t>(2 * step) * kTile, kRow);
  tile_load<6>(x, kPanelRow);
  tile_dot<0, 4, 6>();
  tile_load<5>(weights + static_cast<size_t>(2 * step + 1) * kTile, kRow);
  tile_dot<2, 5, 6>();
  tile_load<7>(x + kRow, kPanelRow);
  tile_dot<1, 4, 7>();
  tile_dot<3, 5, 7>();
}

// As "one strip", with the weights of the tile `Ahead` further on stored row by row before it.
template <int Ahead>
void stored_first(int step) {
  static uint32_t turn = 0;
  uint8_t* to = stored + (turn + Ahead) % 8 * kTile;
  for (int r = 0; r < 16; ++r) {
    const __m512i row = _mm512_load_si512(weights + static_cast<size_t>(step) * kTile + r * kRow);
    _mm512_store_si512(to + r * kRow, row);
  }
  multiply_strip(stored + turn++ % 8 * kTile, panel(step));
}

struct Loop {
  const char* name;
  void (*step)(int);
};

constexpr Loop kLoops[] = {
    {"registers alone", registers},
    {"one sum, a chain of four", chain},
    {"four loads alone, rows 64 bytes apart", loads<kRow>},
    {"four loads alone, rows 256 bytes apart", loads<kPanelRow>},
    {"one register loaded for each product", reload},
    {"one strip", one_strip},
    {"one strip, loads ahead", one_strip_ahead},
    {"two strips", two_strips},
    {"one strip, expanded by stores, 1 ahead", stored_first<1>},
    {"one strip, expanded by stores, 4 ahead", stored_first<4>},
};

// `rounds` passes over the steps of a chunk, between a zeroing of the sums and a store of them.
void run(void (*step)(int), long rounds) {
  tile_configure(kFullTiles);
  loads<kPanelRow>(0);
  for (long i = 0; i < rounds; ++i) {
    zero();
    for (int s = 0; s < kSteps; ++s) step(s);
    store();
  }
  tile_release();
}

}  // namespace

int main(int count, char** words) {
  if (!(detect_isa("amx") & kIsaAmxInt8)) {
    std::printf("tiles_bench: expected a processor and a system with AMX-INT8, found none\n");
    return 1;
  }
  const long rounds = count > 1 ? std::max(1L, std::atol(words[1])) : 20000;
  std::memset(weights, 1, sizeof weights);
  std::memset(inputs, 1, sizeof inputs);
  double unit = 0;
  for (const Loop& loop : kLoops) {
    const double time = seconds([&] { run(loop.step, rounds); }) / (static_cast<double>(rounds) * kSteps);
    if (unit == 0) unit = time / 64;
    std::printf("%-40s %6.1f cycles\n", loop.name, time / unit);
  }
}
