// Attention with relative positions, and scores that are masked by Where, in the forms that exporters give them.
#include <cmath>

#include "check.h"
#include "relative.h"
#include "run.h"

using namespace obert;
using namespace obert::testing;

namespace {

void check_form(const Kernels* kernels, const Relatively& form, int layers, int batch, int length) {
  Disentangled m(form, batch, length);
  const int hidden = m.b.input("hidden");
  Array& a = m.known[hidden];
  a.shape = {batch, length, Disentangled::kWide};
  for (int64_t i = 0; i < Array::count(a.shape); ++i) a.data.push_back(2. * m.r.uniform() - 1.);
  int x = m.weighed(hidden);
  for (int i = 0; i < layers; ++i) x = m.layer(x);
  if (form.picked) x = m.b.node("Relu", {quantized_linear(m.b, m.r, m.b.fake_quantize(m.b.token(x, -1), 0.03f, 125), Disentangled::kWide, 8, 1.f)});
  m.b.output(x);
  const Claims claims = claim(m.b.graph);
  CHECK_SAME(claims.parts.size(), 1u);
  if (claims.parts.size() != 1) {
    std::printf("terms %d index %d masked %d joined %d tiled %d first %d spread %d picked %d\n", form.terms, form.index, form.masked, form.joined, form.tiled, form.positions_first, form.spread_mask, form.picked);
    for (const Skip& skip : claims.skips) std::printf("%s: %s\n", m.b.graph.nodes[skip.node].op.c_str(), skip.reason.c_str());
    return;
  }
  CHECK_SAME(claims.parts[0].size(), m.b.graph.nodes.size());
  int of_queries = 0, of_keys = 0;
  for (const Step& step : lower(m.b.graph, match(m.b.graph), signature_of(m.b.graph), kernels).steps) {
    of_queries += step.by_query.used();
    of_keys += step.by_key.used();
  }
  CHECK_SAME(of_queries, form.terms == Relatively::kKeys ? 0 : layers);
  CHECK_SAME(of_keys, form.terms == Relatively::kQueries ? 0 : layers);
  const Array got = run_engine(m.b.graph, m.known, kernels, 2, m.types).at(x), expected = Reference(m.b.graph).run(m.known).at(x);
  CHECK(got.shape == expected.shape);
  const Differences d(got, expected);
  // A code that falls to the other side moves a result by a step times a weight, 0.02, and codes of the next layer with it.
  CHECK(d.most <= (layers > 1 ? 0.4 : 0.1) && d.mean <= (layers > 1 ? 0.01 : 0.001),
        "terms %d index %d masked %d: largest %g, mean %g", form.terms, form.index, form.masked, d.most, d.mean);
}

// What looks like it and is something else has no such term.
void check_left() {
  enum Change { kNone, kOtherAxis, kOneHeadAlone, kOtherHeads, kTableOfOtherHeads, kNotTurned, kTwice, kSpreadFromOne, kTiledPositions, kChanges };
  for (int change = kNone; change < kChanges; ++change) {
    Disentangled m(Relatively(), 2, 7);
    Builder& b = m.b;
    constexpr int kCount = Disentangled::kCount, kEach = Disentangled::kEach, kColumns = Disentangled::kColumns;
    const int x = b.fake_quantize(b.input("hidden"), 0.03f, 125), q = m.heads(x), k = m.heads(x), v = m.heads(x), other = m.heads(x);
    const int count = change == kTableOfOtherHeads ? 1 : kCount;
    const int table = b.constant({count, kColumns, kEach}, m.r.normals(static_cast<size_t>(count * kColumns * kEach)));
    const int tiled = b.node("Tile", {table, b.constant({2, change == kTiledPositions ? 2 : 1, 1})});
    const int products = b.node("MatMul", {change == kOtherHeads ? other : q, m.last_turned(tiled)});
    const int one = b.input("index", {change == kOneHeadAlone ? -1 : 1, -1, -1});
    const int index = change == kOneHeadAlone ? one : b.node("Expand", {one, b.constant({change == kSpreadFromOne ? 1 : 2 * kCount, 7, 7})});
    Node axis;
    axis.ints["axis"] = change == kOtherAxis ? 1 : 2;
    int picked = b.node("GatherElements", {products, index}, axis);
    if (change == kNotTurned) picked = m.last_turned(picked);
    int scores = b.node("Add", {b.node("MatMul", {q, m.last_turned(k)}), picked});
    if (change == kTwice) scores = b.node("Add", {scores, picked});
    Node last;
    last.ints["axis"] = -1;
    const int context = b.node("MatMul", {b.node("Softmax", {scores}, last), v});
    const int joined = b.node("Reshape", {b.transpose(b.node("Reshape", {context, b.constant({-1, kCount, 7, kEach})}), {0, 2, 1, 3}), b.constant({0, 0, Disentangled::kWide})});
    b.output(joined);
    int terms = 0;
    for (const Op& op : match(b.graph).ops) terms += op.by_query.used() || op.by_key.used();
    CHECK(terms == (change == kNone), "change %d: %d terms", change, terms);
    for (const Part& part : claim(b.graph).parts)
      for (int n : part) CHECK(change == kNone || b.graph.nodes[n].op != "GatherElements", "change %d", change);
  }
}

// Positions that are not of the table are refused, and so are those of fewer tokens.
void check_refused() {
  for (int change : {0, 1, 2, 3}) {
    Disentangled m(Relatively(), 1, 9);
    const int hidden = m.b.input("hidden"), x = m.layer(hidden);
    m.b.output(x);
    m.known[hidden].shape = {1, 9, Disentangled::kWide};
    m.known[hidden].data.assign(9 * Disentangled::kWide, 0.5);
    for (auto& [value, array] : m.known) {
      if (!m.types.count(value)) continue;
      if (change == 1) array.data[5] = Disentangled::kColumns;
      if (change == 2) array.data[5] = -Disentangled::kColumns - 1;
      if (change == 3) array.shape = {1, 3, 27};
    }
    bool refused = false;
    try {
      run_engine(m.b.graph, m.known, find_kernels("portable"), 2, m.types);
    } catch (const std::runtime_error&) {
      refused = true;
    }
    CHECK(refused == (change != 0), "change %d", change);
  }
}

// An index that others read when it is spread is read as they do.
void check_read_elsewhere(const Kernels* kernels) {
  for (bool joined : {false, true}) {
    Relatively form;
    form.joined = joined;
    Disentangled m(form, 2, 19);
    const int hidden = m.b.input("hidden"), y = m.layer(hidden);
    m.b.output(y);
    m.b.output(m.b.node("Identity", {m.index(true)}));
    m.b.output(m.b.node("Identity", {m.index(false)}));
    m.known[hidden] = {{2, 19, Disentangled::kWide}, {}};
    for (int i = 0; i < 2 * 19 * Disentangled::kWide; ++i) m.known[hidden].data.push_back(2. * m.r.uniform() - 1.);
    const Claims claims = claim(m.b.graph);
    CHECK_SAME(claims.parts.size(), 1u);
    if (claims.parts.size() != 1) continue;
    CHECK_SAME(claims.parts[0].size(), m.b.graph.nodes.size() - 4);
    const std::map<int, Array> all = Reference(m.b.graph).run(m.known);
    for (bool by_query : {false, true}) m.types[m.index(by_query)] = Type::kInt64;
    const Array got = run_engine(part_graph(m.b.graph, claims.parts[0]), all, kernels, 2, m.types, claims.reshapes).at(y);
    for (size_t i = 0; i < got.data.size(); ++i) CHECK(std::fabs(got.data[i] - all.at(y).data[i]) <= 0.1, "%g, got %g", all.at(y).data[i], got.data[i]);
  }
}

}  // namespace

int main() {
  check_left();
  check_refused();
  const KernelSet set = available_kernels();
  for (size_t i = 0; i < set.count; ++i) {
    const Kernels* k = set.tables[i];
    std::printf("%s\n", k->name);
    int count = 0;
    for (auto terms : {Relatively::kBoth, Relatively::kQueries, Relatively::kKeys})
      for (auto index : {Relatively::kSpread, Relatively::kConstant, Relatively::kSpreadConstant})
        for (auto masked : {Relatively::kNo, Relatively::kFilled, Relatively::kFilledUnless, Relatively::kCleared, Relatively::kAdded}) {
          Relatively f;
          f.terms = terms, f.index = index, f.masked = masked;
          f.joined = count % 2 == 0;
          f.tiled = count % 3 != 0;
          f.positions_first = count % 4 < 2;
          f.spread_mask = count % 3 == 1;
          f.rounded = count % 5 > 2;
          f.weighed = count % 4 == 1;
          ++count;
          check_form(k, f, 1, 1, 70);
          check_form(k, f, 2, 3, 21);
          f.picked = true;
          check_form(k, f, 2, 2, 33);
          check_form(k, f, 1, 3, 1);
        }
    check_read_elsewhere(k);
    Relatively f;
    check_form(k, f, 1, 1, 200);   // in blocks of queries
    f.masked = Relatively::kFilled;
    check_form(k, f, 1, 9, 18);    // a group for each thread
  }
  return check::report("relative");
}
