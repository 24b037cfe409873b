// What relative positions add to scores against the formula in double. Bound: each product of head_dim terms is rounded
// at most head_dim + 3 times, so (head_dim + 3) 2^-24 of the sum of their sizes, and as much of the mask.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "cases.h"
#include "check.h"
#include "emulated_amx.h"

using namespace obert;

namespace {

enum class Mask { kNone, kRow, kEach };
enum class Positions { kNear, kAnywhere };

struct Case {
  int length, head_dim, positions;
  size_t first;
  bool by_query, by_key;
  Mask mask;
  Positions order;
  int query_begin = 0, query_end = 0;   // 0: all
  int queries = 0;                      // 0: the same tokens as keys, otherwise others
  Rounding rounding = {};
};

size_t at(size_t token, int width, int column) {
  return (token / kPanel * static_cast<size_t>(width) + static_cast<size_t>(column)) * kPanel + token % kPanel;
}

// Of a column's element in a table.
size_t place(int head_dim, int d, int column) {
  return static_cast<size_t>((column / kTableColumns * head_dim + d) * kTableColumns + column % kTableColumns);
}

struct Term {
  Buffer<float> table;
  Buffer<int32_t> index;
  RelativeTerm term;

  Term(const Case& c, int own, int others, float factor, Random& random)
      : table(static_cast<size_t>(c.head_dim) * static_cast<size_t>((c.positions + kTableColumns - 1) / kTableColumns * kTableColumns)),
        index(static_cast<size_t>(own) * static_cast<size_t>(others + 3), -1) {
    for (int p = 0; p < c.positions; ++p)
      for (int d = 0; d < c.head_dim; ++d) table[place(c.head_dim, d, p)] = random.normal();
    const int slope = factor > 0 ? 1 : -1;
    for (int i = 0; i < own; ++i)
      for (int j = 0; j < others; ++j)
        index[static_cast<size_t>(i) * static_cast<size_t>(others + 3) + static_cast<size_t>(j)] =
            c.order == Positions::kNear ? std::clamp(c.positions / 2 + slope * (i - j), 0, c.positions - 1)
                                        : random.integer(0, c.positions - 1);
    term.table = table.data();
    term.index = index.data();
    term.index_stride = static_cast<size_t>(others) + 3;
    term.rounding = c.rounding;
    term.factor = factor;
  }
};

// The term's value and the sum of the sizes of what is added up in it, or how far it may be off where it is rounded.
std::pair<double, double> value_of(const RelativeTerm& t, int head_dim, const float* x, int width, int column, size_t token, int own,
                                   int other) {
  double sum = 0, size = 0;
  const int32_t p = t.index[static_cast<size_t>(own) * t.index_stride + static_cast<size_t>(other)];
  for (int d = 0; d < head_dim; ++d) {
    const double one = static_cast<double>(x[at(token, width, column + d)]) * t.table[place(head_dim, d, p)];
    sum += one;
    size += std::fabs(one);
  }
  if (t.rounding.scale == 0.f) return {sum * t.factor, size * std::fabs(t.factor)};
  const auto rounded = [&](double x) {
    const double zero = t.rounding.zero_point;
    return (std::clamp(std::nearbyint(x / t.rounding.scale) + zero, 0., 255.) - zero) * t.rounding.scale;
  };
  // Near the border between two codes either will do.
  const double bound = (head_dim + 3) * 6e-8 * size + 1e-6 * std::fabs(sum), low = rounded(sum - bound), high = rounded(sum + bound);
  return {rounded(sum) * t.factor, (std::fabs(high - low) / ((head_dim + 3) * 6e-8) + std::fabs(sum) + t.rounding.scale) * std::fabs(t.factor)};
}

void check_case(const Case& c, const std::vector<const Kernels*>& tables) {
  Random random(static_cast<uint32_t>(c.length * 31 + c.head_dim * 7 + c.positions) + static_cast<uint32_t>(c.first));
  const int queries = c.queries ? c.queries : c.length, end = c.query_end ? c.query_end : queries, column = 2;
  const int q_width = c.head_dim + 3, k_width = c.head_dim + 5;
  const size_t first_query = c.queries ? 7 : c.first, last_query = first_query + static_cast<size_t>(queries);
  const size_t last = c.first + static_cast<size_t>(c.length), panels = panels_of(std::max(last, last_query));
  Buffer<float> q(panels * panel_floats(static_cast<size_t>(q_width)), NAN), k(panels * panel_floats(static_cast<size_t>(k_width)), NAN);
  for (int d = 0; d < c.head_dim; ++d) {   // others must not be read
    for (size_t t = first_query; t < last_query; ++t) q[at(t, q_width, column + d)] = random.normal();
    for (size_t t = c.first; t < last; ++t) k[at(t, k_width, column + 1 + d)] = random.normal();
  }
  Term by_query(c, queries, c.length, .25f, random), by_key(c, c.length, queries, -.5f, random);
  const size_t mask_stride = c.mask == Mask::kEach ? static_cast<size_t>(c.length) + 1 : 0;
  Buffer<float> mask(static_cast<size_t>(queries) * (static_cast<size_t>(c.length) + 1));
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = random.integer(0, 3) ? random.normal() : -3.4028235e38f;
  for (const Kernels* table : tables) {
    const auto rows = static_cast<size_t>(end - c.query_begin), length = static_cast<size_t>(c.length);
    Buffer<float> out(rows * length + 1, 77.f);
    Buffer<char> scratch(table->relative_scratch(c.positions, c.head_dim), 1);
    RelativeScores r;
    r.head_dim = c.head_dim, r.length = c.length;
    r.first = c.first, r.first_query = first_query;
    r.q = q.data(), r.k = k.data(), r.q_width = q_width, r.k_width = k_width, r.q_column = column, r.k_column = column + 1;
    if (c.by_query) r.by_query = by_query.term;
    if (c.by_key) r.by_key = by_key.term;
    if (c.mask != Mask::kNone) r.mask = mask.data();
    r.mask_stride = mask_stride;
    r.query_begin = c.query_begin, r.query_end = end;
    r.out = out.data();
    r.scratch = scratch.data();
    table->relative_scores(r);
    CHECK(out[rows * length] == 77.f, "%s wrote beyond its result", table->name);
    for (int i = c.query_begin; i < end; ++i)
      for (int j = 0; j < c.length; ++j) {
        const float added = r.mask ? mask[static_cast<size_t>(i) * mask_stride + static_cast<size_t>(j)] : 0.f;
        double expected = added, size = std::fabs(added);
        if (c.by_query) {
          const auto [value, sizes] = value_of(by_query.term, c.head_dim, q.data(), q_width, column, first_query + static_cast<size_t>(i), i, j);
          expected += value, size += sizes;
        }
        if (c.by_key) {
          const auto [value, sizes] = value_of(by_key.term, c.head_dim, k.data(), k_width, column + 1, c.first + static_cast<size_t>(j), j, i);
          expected += value, size += sizes;
        }
        const float got = out[static_cast<size_t>(i - c.query_begin) * length + static_cast<size_t>(j)];
        CHECK(check::near(expected, got, (c.head_dim + 3) * 6e-8 * size), "%s length %d, heads of %d, %d positions, query %d key %d: %g, got %g",
              table->name, c.length, c.head_dim, c.positions, i, j, expected, got);
        if (added < -1e38f) CHECK(got == added, "%s: a mask of %g became %g", table->name, added, got);
      }
  }
}

}  // namespace

int main() {
  std::vector<const Kernels*> tables = tables_under_test();
  tables.push_back(find_kernels("portable"));
  tables.push_back(emulated_amx());   // vectors of 16 lanes, on every processor
  for (Positions order : {Positions::kNear, Positions::kAnywhere})
    for (int length : {1, 3, 8, 15, 16, 17, 31, 33, 64, 65, 130})
      for (int head_dim : {1, 8, 20, 64}) {
        check_case({length, head_dim, 24, 0, true, true, Mask::kEach, order}, tables);
        check_case({length, head_dim, 300, 5, true, true, Mask::kRow, order}, tables);
      }
  for (int positions : {1, 2, 5, 6, 7, 11, 12, 13, 37})
    for (size_t first : {size_t{0}, size_t{48}, size_t{60}}) check_case({40, 16, positions, first, true, true, Mask::kNone, Positions::kAnywhere}, tables);
  for (bool by_query : {false, true}) {
    check_case({50, 24, 100, 3, by_query, !by_query, Mask::kRow, Positions::kNear}, tables);
    check_case({130, 24, 100, 0, by_query, !by_query, Mask::kNone, Positions::kNear, 64, 128}, tables);
  }
  for (int length : {5, 40, 130})
    for (int zero_point : {0, 128, 255}) check_case({length, 24, 100, 3, true, true, Mask::kRow, Positions::kNear, 0, 0, 0, {.07f, zero_point}}, tables);
  check_case({130, 24, 100, 0, false, false, Mask::kEach, Positions::kNear}, tables);
  check_case({130, 24, 260, 64, true, true, Mask::kEach, Positions::kNear, 64, 130}, tables);
  check_case({130, 24, 260, 64, true, true, Mask::kEach, Positions::kNear, 128, 130}, tables);
  check_case({90, 24, 260, 64, true, true, Mask::kRow, Positions::kAnywhere, 0, 0, 1}, tables);
  return check::report("relative_scores");
}
