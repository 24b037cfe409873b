// Rows that are gathered and unpacked: every step is one operation of IEEE floats in the order of the steps, so that
// tables agree bit for bit, and `portable` with the formula in double where that is exact.
#include <cmath>
#include <cstring>

#include "cases.h"
#include "check.h"

using namespace obert;

namespace {

bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b)); }

// Steps one after another, each with room of its own.
struct Steps {
  std::vector<RowStep> list;
  size_t floats = 0;

  int add(RowStep s, int a = -1, int b = -1) {
    if (a >= 0) s.a = list[a].out, s.width_a = list[a].width;
    if (b >= 0) s.b = list[b].out, s.width_b = list[b].width;
    s.out = floats;
    floats += static_cast<size_t>(s.width);
    list.push_back(s);
    return static_cast<int>(list.size()) - 1;
  }
  int table(Element e, const void* data, int width) {
    RowStep s;
    s.element = e, s.table = data, s.width = width;
    return add(s);
  }
  int constant(float x) {
    RowStep s;
    s.op = RowOp::kConstant, s.constant = x, s.width = 1;
    return add(s);
  }
  int apply(RowOp op, int a, int b = -1) {
    RowStep s;
    s.op = op, s.width = list[a].width + (op == RowOp::kConcat ? list[b].width : 0);
    return add(s, a, b);
  }
  std::vector<float> run(const Kernels* k, size_t index, float before, bool adds) const {
    Buffer<float> scratch(floats, NAN), out(static_cast<size_t>(list.back().width), before);
    k->gather_row(list.data(), static_cast<int>(list.size()), index, scratch.data(), out.data(), adds);
    return std::vector<float>(out.data(), out.data() + out.size());
  }
};

void compare(const Steps& steps, size_t index, const std::vector<const Kernels*>& tables, const char* what) {
  for (bool adds : {false, true}) {
    const std::vector<float> want = steps.run(find_kernels("portable"), index, .75f, adds);
    for (const Kernels* k : tables) {
      const std::vector<float> got = steps.run(k, index, .75f, adds);
      for (size_t i = 0; i < want.size(); ++i)
        if (!CHECK(same(want[i], got[i]), "%s %s: element %zu of %zu is %.9g, got %.9g", k->name, what, i, want.size(), want[i],
                   got[i]))
          break;
    }
  }
}

// Two codes of 4 bits a byte, a scale in float16 and a zero point for each of four groups.
void nibbles(int half, const std::vector<const Kernels*>& tables) {
  Random random(static_cast<uint32_t>(half));
  constexpr int kRows = 5, kGroups = 4;
  const int width = 2 * half;
  Buffer<uint8_t> codes(static_cast<size_t>(kRows * half)), zeros(kRows * kGroups);
  Buffer<uint16_t> scales(kRows * kGroups);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(random.integer(0, 255));
  for (size_t i = 0; i < zeros.size(); ++i) zeros[i] = static_cast<uint8_t>(random.integer(0, 15));
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<uint16_t>(random.integer(0x1000, 0x4000));
  Steps s;
  const int bytes = s.table(Element::kUInt8, codes.data(), half), sixteenth = s.constant(1.f / 16), sixteen = s.constant(16.f);
  const int high = s.apply(RowOp::kFloor, s.apply(RowOp::kMultiply, bytes, sixteenth));
  const int low = s.apply(RowOp::kSubtract, bytes, s.apply(RowOp::kMultiply, high, sixteen));
  const int joined = s.apply(RowOp::kConcat, high, low), zero = s.table(Element::kUInt8, zeros.data(), kGroups);
  const int centred = s.apply(RowOp::kSubtract, joined, zero), scale = s.table(Element::kHalf, scales.data(), kGroups);
  s.apply(RowOp::kMultiply, centred, scale);
  for (int row = 0; row < kRows; ++row) {
    const std::vector<float> got = s.run(find_kernels("portable"), static_cast<size_t>(row), 0.f, false);
    for (int i = 0; i < width; ++i) {
      const int code = codes[static_cast<size_t>(row * half + i % half)], group = i / (width / kGroups);
      const uint16_t h = scales[static_cast<size_t>(row * kGroups + group)];
      const double size = std::ldexp(1024 + (h & 1023), (h >> 10) - 25);
      const double want = ((i < half ? code / 16 : code % 16) - zeros[static_cast<size_t>(row * kGroups + group)]) * size;
      CHECK(got[static_cast<size_t>(i)] == static_cast<float>(want), "portable: %g expected, got %g", want, got[static_cast<size_t>(i)]);
    }
    compare(s, static_cast<size_t>(row), tables, "nibbles");
  }
}

// Every float16, NaN and denormals among them.
void halves(const std::vector<const Kernels*>& tables) {
  Buffer<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  Steps s;
  s.table(Element::kHalf, all.data(), 65536);
  const std::vector<float> got = s.run(find_kernels("portable"), 0, 0.f, false);
  CHECK(got[0x3c00] == 1.f && got[0x8001] == -0x1p-24f && got[0x7bff] == 65504.f && got[0xfc00] == -INFINITY && std::isnan(got[0x7e00]) &&
            got[0x03ff] == 0x3ffp-24f && std::signbit(got[0x8000]),
        "portable reads float16 wrong");
  compare(s, 0, tables, "halves");
}

// Every operation on operands of equal length and on runs, with what floats can hold.
void operations(int width, int run, const std::vector<const Kernels*>& tables) {
  Random random(static_cast<uint32_t>(width * 100 + run));
  const float odd[] = {0.f, -0.f, NAN, INFINITY, -INFINITY, 1e-40f, 3e38f, 8388609.f, -.5f, 2147483904.f};
  Buffer<float> x(static_cast<size_t>(width * run) * 2), y(static_cast<size_t>(width) * 2);
  Buffer<int8_t> z(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = random.chance(.2) ? odd[random.integer(0, 9)] : random.normal(100.f);
    z[i] = static_cast<int8_t>(random.integer(-128, 127));
  }
  for (size_t i = 0; i < y.size(); ++i) y[i] = random.chance(.2) ? odd[random.integer(0, 9)] : random.normal();
  for (RowOp op : {RowOp::kAdd, RowOp::kSubtract, RowOp::kMultiply, RowOp::kDivide, RowOp::kFloor, RowOp::kConcat})
    for (bool integers : {false, true}) {
      Steps s;
      const int a = integers ? s.table(Element::kInt8, z.data(), width * run) : s.table(Element::kFloat, x.data(), width * run);
      s.apply(op, a, op == RowOp::kFloor ? -1 : s.table(Element::kFloat, y.data(), width));
      compare(s, 1, tables, "operation");
    }
}

}  // namespace

int main() {
  const std::vector<const Kernels*> tables = tables_under_test();
  for (int half : {2, 6, 32, 34, 384}) nibbles(half, tables);
  halves(tables);
  for (int width : {1, 3, 16, 17, 64}) operations(width, 1, tables);
  for (int run : {2, 5, 16, 64}) operations(12, run, tables);
  return check::report("rows");
}
