#include "tile_machine.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace obert {
namespace {

constexpr int kMostRows = 16, kMostBytes = 64;

struct Tile {
  int rows = 0, bytes = 0;
  uint8_t data[kMostRows][kMostBytes] = {};

  int32_t dword(int row, int column) const {
    int32_t v;
    std::memcpy(&v, data[row] + 4 * column, sizeof v);
    return v;
  }
};

struct Machine {
  bool configured = false;
  Tile tiles[kTileRegisters];
};

Machine& machine() {
  static thread_local Machine m;
  return m;
}

void expect(bool ok, const char* what) {
  if (!ok) throw std::logic_error(std::string("tiles: expected ") + what);
}

Tile& tile(int t) {
  expect(machine().configured, "a configuration");
  expect(t >= 0 && t < kTileRegisters, "a register from 0 to 7");
  Tile& found = machine().tiles[t];
  expect(found.rows > 0, "a register that is configured");
  return found;
}

void expect_shapes(const Tile& sum, const Tile& x, const Tile& y) {
  expect(sum.bytes % 4 == 0 && x.bytes % 4 == 0 && y.bytes % 4 == 0, "whole dwords");
  expect(sum.rows == x.rows, "as many rows of sums as of the first operand");
  expect(sum.bytes == y.bytes, "as many columns of sums as of the second operand");
  expect(x.bytes / 4 == y.rows, "operands of the same depth");
}

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return flushed(x);
}

}  // namespace

void machine_configure(const TileConfig& config) {
  expect(reinterpret_cast<uintptr_t>(&config) % alignof(TileConfig) == 0, "an aligned configuration");
  expect(config.palette <= 1, "palette 0 or 1");
  Machine fresh;
  if (config.palette == 1) {
    expect(config.start_row == 0, "to start at row 0");
    for (uint8_t r : config.reserved) expect(r == 0, "reserved bytes of 0");
    for (int t = 0; t < 16; ++t) {
      const int rows = config.rows[t], bytes = config.row_bytes[t];
      if (t >= kTileRegisters) {
        expect(rows == 0 && bytes == 0, "nothing for registers that do not exist");
        continue;
      }
      expect(rows <= kMostRows, "at most 16 rows");
      expect(bytes <= kMostBytes, "at most 64 bytes a row");
      expect((rows == 0) == (bytes == 0), "rows and bytes, or neither");
      fresh.tiles[t].rows = rows;
      fresh.tiles[t].bytes = bytes;
    }
    fresh.configured = true;
  }
  machine() = fresh;
}

void machine_release() { machine() = Machine(); }

bool machine_configured() { return machine().configured; }

void machine_zero(int t) { std::memset(tile(t).data, 0, sizeof tile(t).data); }

void machine_load(int t, const void* from, size_t stride) {
  Tile& to = tile(t);
  std::memset(to.data, 0, sizeof to.data);
  for (int r = 0; r < to.rows; ++r)
    std::memcpy(to.data[r], static_cast<const char*>(from) + static_cast<size_t>(r) * stride,
                static_cast<size_t>(to.bytes));
}

void machine_store(int t, void* to, size_t stride) {
  const Tile& from = tile(t);
  for (int r = 0; r < from.rows; ++r)
    std::memcpy(static_cast<char*>(to) + static_cast<size_t>(r) * stride, from.data[r],
                static_cast<size_t>(from.bytes));
}

void machine_dot(int c, int a, int b) {
  expect(c != a && c != b && a != b, "three different registers");
  Tile& sum = tile(c);
  const Tile &x = tile(a), &y = tile(b);
  expect_shapes(sum, x, y);
  for (int m = 0; m < sum.rows; ++m)
    for (int n = 0; n < sum.bytes / 4; ++n) {
      uint32_t total = static_cast<uint32_t>(sum.dword(m, n));  // wraps, as the processor's does
      for (int k = 0; k < x.bytes / 4; ++k)
        for (int i = 0; i < 4; ++i)
          total += static_cast<uint32_t>(static_cast<int8_t>(x.data[m][4 * k + i]) * y.data[k][4 * n + i]);
      std::memcpy(sum.data[m] + 4 * n, &total, sizeof total);
    }
}

// A multiplication and addition rounds once; first halves of pairs add up, second halves, then both to
// what was there. Denormals are zeros wherever they come in or would come out.
void machine_dot_bf16(int c, int a, int b) {
  expect(c != a && c != b && a != b, "three different registers");
  Tile& sum = tile(c);
  const Tile &x = tile(a), &y = tile(b);
  expect_shapes(sum, x, y);
  const int depth = x.bytes / 4;
  for (int m = 0; m < sum.rows; ++m)
    for (int n = 0; n < sum.bytes / 4; ++n) {
      float halves[2] = {0.f, 0.f};
      for (int k = 0; k < depth; ++k) {
        const uint32_t p = static_cast<uint32_t>(x.dword(m, k)), q = static_cast<uint32_t>(y.dword(k, n));
        halves[0] = flushed(std::fma(float_of(p << 16), float_of(q << 16), halves[0]));
        halves[1] = flushed(std::fma(float_of(p & 0xffff0000u), float_of(q & 0xffff0000u), halves[1]));
      }
      const float before = float_of(static_cast<uint32_t>(sum.dword(m, n)));
      const float total = flushed(before + flushed(halves[0] + halves[1]));
      std::memcpy(sum.data[m] + 4 * n, &total, sizeof total);
    }
}

}  // namespace obert
