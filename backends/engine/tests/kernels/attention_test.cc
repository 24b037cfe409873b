// Attention against sums in double. Bound for y in floats: 2e-5 * (largest |v| + |y|), which leaves
// room for scores up to about 50 rounded in float. Quantised alone: the bound of attention_numbers.h.
// On tiles, whose products are off by at most 2^-15 of themselves, every score moves by at most
// d = 2^-15 scale Q K and y by as much more as largest |v| * (2 (e^2d - 1) + 2^-15). Errors are of either sign: where
// there are 1000 outputs, their root mean square is held to a hundredth of that. Inputs that do not suit tiles, here
// those with infinities, NaN, a value of 1e20 or all of them near 1e-20, keep the bound of floats.
#include <algorithm>
#include <cstring>

#include "cases.h"
#include "check.h"
#include "emulated_amx.h"
#include "tile_machine.h"

using namespace obert;

namespace {

enum class Mask { kNone, kRow, kEach };

struct Case {
  int length, head_dim;
  size_t first;
  Mask mask;
  float masked;     // what masked keys get
  bool all_masked;  // a query (or all) with every key masked
  float spread;     // deviation of q and k
  int queries = 0;  // 0: as many as keys, and the same tokens
  size_t first_query = 0;
};

size_t at(size_t token, int width, int column) {
  return (token / kPanel * static_cast<size_t>(width) + column) * kPanel + token % kPanel;
}
size_t code_at(size_t token, int width, int column) { return at(token, width / kBlock, column / kBlock) * kBlock + column % kBlock; }

enum Poison { kNothing, kNanQuery, kInfiniteKey, kNanValue, kLargeValue, kDenormalQuery };

bool on_tiles(const Kernels* table) { return !std::strncmp(table->name, "amx", 3); }

void check_case(const Case& c, const std::vector<const Kernels*>& tables, int poison = kNothing) {
  Random random(static_cast<uint32_t>(c.length * 31 + c.head_dim) + static_cast<uint32_t>(c.first));
  const int queries = c.queries ? c.queries : c.length;
  const size_t first_query = c.queries ? c.first_query : c.first, last_query = first_query + static_cast<size_t>(queries);
  const size_t tokens = c.first + static_cast<size_t>(c.length), panels = panels_of(std::max(tokens, last_query));
  const int columns = 8, width = c.head_dim + columns + 3, out_width = (c.head_dim + columns + 4 + 3) / 4 * 4;
  Buffer<float> q(panels * panel_floats(width)), k(q.size()), v(q.size());
  for (size_t i = 0; i < q.size(); ++i)
    q[i] = random.normal(c.spread), k[i] = random.normal(c.spread), v[i] = random.normal();
  for (size_t t = 0; t < panels * kPanel; ++t)  // strangers must not be read
    for (int f = 0; f < width; ++f) {
      if (t < c.first || t >= tokens) k[at(t, width, f)] = v[at(t, width, f)] = NAN;
      if (t < first_query || t >= last_query) q[at(t, width, f)] = NAN;
    }
  if (poison == kNanQuery) q[at(first_query + queries / 2, width, 2 + c.head_dim / 2)] = NAN;
  if (poison == kInfiniteKey) k[at(c.first + c.length / 2, width, 3 + c.head_dim / 2)] = INFINITY;
  if (poison == kNanValue) v[at(c.first + c.length / 2, width, columns + c.head_dim / 2)] = NAN;
  if (poison == kLargeValue) v[at(c.first + c.length / 2, width, columns + c.head_dim / 2)] = 1e20f;
  if (poison == kDenormalQuery)
    for (int d = 0; d < c.head_dim; d += 2) q[at(first_query + queries / 2, width, 2 + d)] = 1e-40f;
  const size_t stride = c.mask == Mask::kEach ? static_cast<size_t>(c.length) + 1 : 0;
  std::vector<float> mask(static_cast<size_t>(c.length) + stride * static_cast<size_t>(queries - 1));
  for (float& m : mask) m = random.chance(.3) ? c.masked : 0.f;
  if (c.all_masked)
    for (int i = 0; i < c.length; ++i) mask[i] = c.masked;
  else
    for (int i = 0; i < (stride ? queries : 1); ++i)
      mask[i * stride + static_cast<size_t>(i) % static_cast<size_t>(c.length)] = 0.f;

  Attention a;

  a.head_dim = c.head_dim;
  a.length = c.length;
  a.first = c.first;
  a.queries = queries;
  a.first_query = first_query;
  a.q = q.data(), a.k = k.data(), a.v = v.data();
  a.q_width = a.k_width = a.v_width = width;
  a.q_column = 2, a.k_column = 3, a.v_column = columns;
  a.scale = 1.f / std::sqrt(static_cast<float>(c.head_dim));
  a.mask = c.mask == Mask::kNone ? nullptr : mask.data();
  a.mask_stride = stride;
  a.out_width = out_width, a.quantized_width = out_width + 8;
  a.out_column = 4;
  a.inverse_scale = 40.f;
  a.zero_point = 128;

  double longest_q = 0, longest_k = 0;
  std::vector<double> expected(static_cast<size_t>(queries) * c.head_dim);
  double largest = 0;
  for (int j = 0; j < c.length; ++j) {
    double kk = 0;
    for (int d = 0; d < c.head_dim; ++d) {
      kk += std::pow(k[at(c.first + j, width, 3 + d)], 2);
      const float value = v[at(c.first + j, width, columns + d)];
      if (!std::isnan(value)) largest = std::fmax(largest, std::fabs(value));
    }
    longest_k = std::fmax(longest_k, std::sqrt(kk));
  }
  for (int i = 0; i < queries; ++i) {
    std::vector<double> p(static_cast<size_t>(c.length));
    double top = -INFINITY, total = 0, qq = 0;
    for (int d = 0; d < c.head_dim; ++d) qq += std::pow(q[at(first_query + i, width, 2 + d)], 2);
    longest_q = std::fmax(longest_q, std::sqrt(qq));
    for (int j = 0; j < c.length; ++j) {
      double dot = 0;
      for (int d = 0; d < c.head_dim; ++d)
        dot += static_cast<double>(q[at(first_query + i, width, 2 + d)]) * k[at(c.first + j, width, 3 + d)];
      p[j] = static_cast<float>(static_cast<float>(dot * a.scale) + (a.mask ? mask[i * stride + j] : 0.f));
      top = std::fmax(top, p[j]);
    }
    for (double& x : p) total += x = std::exp(x - top);
    for (int d = 0; d < c.head_dim; ++d) {
      double sum = 0;
      for (int j = 0; j < c.length; ++j) sum += p[j] * v[at(c.first + j, width, columns + d)];
      expected[static_cast<size_t>(i) * c.head_dim + d] = sum / total;
    }
  }

  const double moved = std::scalbn(a.scale * longest_q * longest_k, -15);
  const double more = largest * (2 * (std::exp(2 * moved) - 1) + 0x1p-15);
  const bool suits = (poison == kNothing || poison == kDenormalQuery) && c.spread > 1e-9f;

  for (const Kernels* table : tables) {
    const bool tiles = suits && on_tiles(table);
    double squares = 0;
    Buffer<float> out(panels * panel_floats(out_width), 77.f);
    Buffer<uint8_t> quantized(panels * panel_bytes(out_width + 8), 99);
    Buffer<char> scratch(table->attention_scratch(c.length, c.head_dim), 1);
    a.scratch = scratch.data();
    a.out = out.data();
    a.quantized = c.head_dim % 4 == 0 ? quantized.data() : nullptr;
    const auto run = [&] {
      for (int begin = 0; begin < queries; begin += 48) {
        a.query_begin = begin;
        a.query_end = std::min(queries, begin + 48);
        table->attention(a);
      }
    };
    run();
    for (size_t t = 0; t < panels * kPanel; ++t)
      for (int f = 0; f < out_width; ++f) {
        const float got = out[at(t, out_width, f)];
        const int byte =
            quantized[(t / kPanel * (out_width + 8) / 4 + f / 4) * size_t{kPanel} * 4 + t % kPanel * 4 + f % 4];
        if (t < first_query || t >= last_query || f < 4 || f >= 4 + c.head_dim) {
          CHECK(got == 77.f && byte == 99, "%s wrote token %zu feature %d", table->name, t, f);
          continue;
        }
        const double y = expected[(t - first_query) * c.head_dim + f - 4];
        const double bound = 2e-5 * (largest + std::fabs(y)) + (tiles ? more : 0);
        if (!std::isnan(y)) squares += std::pow(y - got, 2);
        if (!CHECK(check::near(y, got, bound),
                   "%s length %d head %d first %zu poison %d: token %zu feature %d: %.8g, got %.8g",
                   table->name, c.length, c.head_dim, c.first, poison, t, f, y, got))
          return;
        if (!a.quantized) continue;
        if (std::isnan(y)) CHECK(byte == 0, "%s NaN quantised to %d", table->name, byte);
        else
          CHECK(std::fabs(std::fmin(std::fmax(y * 40 + 128, 0), 255) - byte) <= .5 + 40 * bound + 1e-4,
                "%s quantised %g, got %d", table->name, y * 40 + 128, byte);
      }
    CHECK(!machine_configured(), "%s keeps its registers", table->name);
    const double outputs = static_cast<double>(queries) * c.head_dim;
    if (tiles && outputs >= 1000)
      CHECK(std::sqrt(squares / outputs) <= 1e-7 * largest + more / 100, "%s length %d head %d: off by %g in the mean, %g allowed",
            table->name, c.length, c.head_dim, std::sqrt(squares / outputs), more / 100);
    if (!a.quantized) continue;
    const std::vector<uint8_t> before(quantized.data(), quantized.data() + quantized.size());
    a.out = nullptr;
    run();
    CHECK(!std::memcmp(before.data(), quantized.data(), before.size()), "%s length %d head %d first %zu: other codes without floats",
          table->name, c.length, c.head_dim, c.first);
  }
}

// Roundings of scores and probabilities, against portable. A value at the border between two codes may
// fall to the other side: a step of a score, or of a probability, and seldom.
void check_roundings(const std::vector<const Kernels*>& tables, int length, int queries, bool all_masked) {
  Random random(static_cast<uint32_t>(length));
  const int head_dim = 16;
  const size_t panels = panels_of(static_cast<size_t>(length)), n = panels * panel_floats(head_dim);
  Buffer<float> q(n), k(n), v(n), want(n);
  for (size_t i = 0; i < n; ++i) q[i] = random.normal(), k[i] = random.normal(), v[i] = random.real(-1, 1);
  const std::vector<float> mask(static_cast<size_t>(length), all_masked ? -INFINITY : 0.f);
  Attention a;
  a.head_dim = head_dim, a.length = length, a.queries = a.query_end = queries;
  a.q = q.data(), a.k = k.data(), a.v = v.data(), a.mask = mask.data();
  a.q_width = a.k_width = a.v_width = a.out_width = head_dim;
  a.scale = .25f;
  a.scores = {.05f, 128};
  a.probabilities = {1 / 255.f, 0};
  a.nan_to_zero = all_masked;
  const auto run = [&](const Kernels* table, float* out) {
    Buffer<char> scratch(table->attention_scratch(length, head_dim));
    a.scratch = scratch.data();
    a.out = out;
    table->attention(a);
  };
  run(find_kernels("portable"), want.data());
  for (const Kernels* table : tables) {
    Buffer<float> got(n);
    run(table, got.data());
    int apart = 0;
    for (int t = 0; t < queries; ++t)
      for (int d = 0; d < head_dim; ++d) {
        const size_t i = at(static_cast<size_t>(t), head_dim, d);
        if (all_masked) CHECK(got[i] == 0.f, "%s masked query gives %g", table->name, got[i]);
        CHECK(check::near(want[i], got[i], .06), "%s rounded %g, got %g", table->name, want[i], got[i]);
        apart += std::fabs(want[i] - got[i]) > 1e-5f;
      }
    CHECK(apart <= queries * head_dim / 50 + head_dim, "%s: %d of %d differ", table->name, apart,
          queries * head_dim);
  }
}

double near_half(double x) { return std::fabs(x - std::floor(x) - .5); }

double code_less_zero(double x, const Rounding& r) {
  return std::fmin(std::fmax(std::nearbyint(x), -r.zero_point), 255 - r.zero_point);
}

struct CodesCase {
  int length, head_dim;
  size_t first;
  int queries, zero_point;
  bool masked, round_scores, round_probabilities, integers;
};

// Queries, keys and values as 8-bit codes, against sums of whole numbers. Queries with a score at the border between two
// codes are left out; a rounded probability there counts as one or the other.
void check_codes(const std::vector<const Kernels*>& tables, const CodesCase& c) {
  Random random(static_cast<uint32_t>(c.length * 7 + c.head_dim));
  const size_t panels = panels_of(c.first + static_cast<size_t>(c.length));
  const int width = c.head_dim + 12;
  Attention a;
  a.of_q = {.0371f, c.zero_point}, a.of_k = {.0293f, 255 - c.zero_point}, a.of_v = {.0117f, c.zero_point};
  if (c.round_probabilities) a.probabilities = {1 / 255.f, c.zero_point / 50};
  a.integers = c.integers;
  if (c.round_scores) a.scores = {.0831f, 120};
  Buffer<uint8_t> q(panels * panel_bytes(width), 171), k(q.size(), 172), v(q.size(), 173);
  const auto place = [&](size_t i, int f) { return code_at(c.first + i, width, f); };
  const auto fill = [&](Buffer<uint8_t>& x, int column) {
    for (int t = 0; t < c.length; ++t)
      for (int d = 0; d < c.head_dim; ++d)   // the ends of the codes among them
        x[place(t, column + d)] =
            static_cast<uint8_t>(random.chance(.1) ? (random.chance(.5) ? 0 : 255) : random.integer(90, 165));
  };
  fill(q, 4), fill(k, 8), fill(v, 12);
  std::vector<float> mask(static_cast<size_t>(c.length));
  for (int j = 0; j < c.length; ++j) mask[j] = c.masked || (j && random.chance(.3)) ? -INFINITY : 0.f;
  a.head_dim = c.head_dim, a.length = c.length, a.first = a.first_query = c.first;
  a.queries = c.queries;
  a.q_codes = q.data(), a.k_codes = k.data(), a.v_codes = v.data(), a.mask = mask.data();
  a.q_width = a.k_width = a.v_width = a.out_width = a.quantized_width = width;
  a.q_column = 4, a.k_column = 8, a.v_column = 12, a.out_column = 4;
  a.scale = .2f / static_cast<float>(c.head_dim);
  a.nan_to_zero = c.masked && c.zero_point == 128;
  a.inverse_scale = 40.f, a.zero_point = 128;
  for (const Kernels* table : tables) {
    Buffer<float> out(panels * panel_floats(width), 77.f);
    Buffer<uint8_t> quantized(q.size(), 99);
    Buffer<char> scratch(table->attention_scratch(c.length, c.head_dim), 1);
    a.scratch = scratch.data(), a.out = out.data(), a.quantized = quantized.data();
    for (a.query_begin = 0; a.query_begin < c.queries; a.query_begin = a.query_end) {
      a.query_end = std::min(c.queries, a.query_begin + 144);
      table->attention(a);
    }
    CHECK(!machine_configured(), "%s keeps its registers", table->name);
    for (int i = 0; i < c.queries; ++i) {
      std::vector<double> p(static_cast<size_t>(c.length));
      double top = -INFINITY, total = 0;
      bool border = false;
      for (int j = 0; j < c.length; ++j) {
        int dot = 0;
        for (int d = 0; d < c.head_dim; ++d)
          dot += (q[place(i, 4 + d)] - a.of_q.zero_point) * (k[place(j, 8 + d)] - a.of_k.zero_point);
        p[j] = static_cast<double>(dot) * a.of_q.scale * a.of_k.scale * a.scale;
        if (c.round_scores) {
          border |= near_half(p[j] / a.scores.scale) < 1e-3;
          p[j] = code_less_zero(p[j] / a.scores.scale, a.scores) * a.scores.scale;
        }
        p[j] += mask[j];
        top = std::fmax(top, p[j]);
      }
      if (border) continue;
      for (double& x : p) total += x = std::exp(x - top);
      int unsure = 0;
      for (double& x : p) {
        if (!c.round_probabilities) {
          x = c.masked ? (a.nan_to_zero ? 0. : NAN) : x / total;
          continue;
        }
        const double steps = x / total / a.probabilities.scale;
        unsure += near_half(steps) < 2e-3;
        x = (c.masked ? (a.nan_to_zero ? 0. : -a.probabilities.zero_point) : code_less_zero(steps, a.probabilities)) * a.probabilities.scale;
      }
      const double largest = 255 * a.of_v.scale;
      const double weights = c.round_probabilities ? unsure * a.probabilities.scale
                             : c.integers         ? c.length / std::fmin(65534 * total, 8.39e6)
                                                  : 0;
      for (int d = 0; d < c.head_dim; ++d) {
        double y = 0;
        for (int j = 0; j < c.length; ++j) y += p[j] * (v[place(j, 12 + d)] - a.of_v.zero_point) * a.of_v.scale;
        const float got = out[at(c.first + i, width, 4 + d)];
        const int byte = quantized[place(i, 4 + d)];
        const double bound = 2e-5 * (largest + std::fabs(y)) + (std::isnan(weights) ? 0 : weights) * largest;
        if (!CHECK(check::near(y, got, bound), "%s codes, length %d head %d first %zu zero point %d: query %d feature %d: %.8g, got %.8g",
                   table->name, c.length, c.head_dim, c.first, c.zero_point, i, d, y, got))
          return;
        if (std::isnan(y)) CHECK(byte == 0, "%s NaN quantised to %d", table->name, byte);
        else
          CHECK(std::fabs(std::fmin(std::fmax(y * 40 + 128, 0), 255) - byte) <= .5 + 40 * bound + 1e-4, "%s quantised %g, got %d",
                table->name, y * 40 + 128, byte);
      }
    }
    for (size_t t = 0; t < panels * kPanel; ++t)
      for (int f = 0; f < width; ++f)
        if (t < c.first || t >= c.first + static_cast<size_t>(c.queries) || f < 4 || f >= 4 + c.head_dim)
          CHECK(out[at(t, width, f)] == 77.f && quantized[code_at(t, width, f)] == 99, "%s wrote token %zu feature %d", table->name, t, f);
  }
}

}  // namespace

int main() {
  std::vector<const Kernels*> tables = tables_under_test(), tiles;
  for (const Kernels* table : emulated_amx_tables())
    if (table->attention != kPortableKernels.attention) tiles.push_back(table);
  if (const Kernels* amx = find_kernels("amx")) tiles.push_back(amx);
  for (const Kernels* table : tiles)
    if (std::find(tables.begin(), tables.end(), table) == tables.end()) tables.push_back(table);
  tables.push_back(find_kernels("portable"));
  for (int length : {1, 2, 15, 16, 17, 37, 64, 65, 128, 200})
    for (int head_dim : {1, 3, 12, 16, 32, 64, 80})
      for (size_t first : {size_t{0}, size_t{5}, size_t{63}, size_t{130}}) {
        const int pick = (length + head_dim) % 3;
        check_case({length, head_dim, first, static_cast<Mask>(pick), first % 2 ? -INFINITY : -3.4028235e38f,
                    false, 1.f},
                   tables);
      }
  // Queries that are other tokens than the keys: few and many.
  for (int length : {1, 15, 33, 64, 130})
    for (int queries : {1, 2, 7, 8, 9, 40})
      for (size_t first_query : {size_t{0}, size_t{62}}) {
        const int pick = length + queries;
        check_case({length, pick % 2 ? 64 : 20, pick % 4 ? size_t{64} : size_t{37}, static_cast<Mask>(pick % 3), -INFINITY, false,
                    1.f, queries, first_query},
                   tables);
      }
  // Around the edges of tiles, of 32 keys, queries or features.
  for (int length : {16, 31, 32, 33, 48, 63, 96, 130, 384})
    for (int head_dim : {8, 12, 32, 36, 48, 64, 128}) {
      if (length > 130 && head_dim != 64) continue;
      const int pick = length + head_dim / 4;
      check_case({length, head_dim, pick % 2 ? size_t{5} : size_t{60}, static_cast<Mask>(pick % 3), -INFINITY, false, 1.f}, tiles);
    }
  float nan_of_all_bits;  // to round it would give another number
  const uint32_t all_bits = 0x7fffffff;
  std::memcpy(&nan_of_all_bits, &all_bits, sizeof all_bits);
  for (Mask mask : {Mask::kRow, Mask::kEach})
    for (float masked : {-3.4028235e38f, -INFINITY, -10000.f, INFINITY, nan_of_all_bits})
      for (int length : {37, 70}) check_case({length, 16, 5, mask, masked, true, 1.f}, tables);
  for (float spread : {1e-20f, 1e-3f, 3.f})
    check_case({128, 64, 64, Mask::kNone, 0.f, false, spread}, tables);
  for (int poison = kNanQuery; poison <= kDenormalQuery; ++poison)
    check_case({64, 64, 5, Mask::kNone, 0.f, false, 1.f}, tables, poison);
  for (int length : {1, 17, 37, 130})
    for (bool all_masked : {false, true})
      for (int queries : {length, std::min(length, 5)}) check_roundings(tables, length, queries, all_masked);
  for (int length : {1, 2, 15, 17, 37, 64, 65, 130, 384})
    for (int head_dim : {4, 16, 36, 64})
      for (int zero_point : {0, 128, 255})
        for (int weights = 0; weights < 3; ++weights) {
          const int pick = length + head_dim / 4 + zero_point;
          check_codes(tables, {length, head_dim, pick % 2 ? size_t{5} : size_t{64}, pick % 3 ? length : std::min(length, 5), zero_point,
                               pick % 5 == 0, pick % 4 != 0, weights == 1, weights == 2});
        }
  return check::report("attention");
}
