// Sequences whose padding is dropped give what they give with it, and it stays where somebody could tell.
#include "../../src/program/padding.h"

#include <cmath>

#include "check.h"
#include "modern.h"
#include "../../src/program/prepare.h"
#include "emulated_amx.h"
#include "run.h"

using namespace obert;
using namespace obert::testing;

namespace {

constexpr float kLowest = -3.4028234663852886e38f;

// A layer over rows of a table, of which one token is read.
struct Model {
  Builder b;
  int ids, mask, out;
  explicit Model(int64_t token, bool all_tokens = false, bool two_masks = false) {
    Numbers r(3);
    ids = b.input("ids"), mask = b.input("mask");
    int x = layer_norm(b, r, b.node("Gather", {b.constant({50, 32}, r.normals(50 * 32)), ids}), 32);
    for (int layer = 0; layer < 2; ++layer) x = encoder_layer(b, r, x, mask, 32, 2, 48, 0.5f);
    if (two_masks) mask_again();
    out = quantized_linear(b, r, b.fake_quantize(b.token(x, token), 0.03f, 125), 32, 6, 1.f);
    b.output(out);
    if (all_tokens) b.output(x);
  }
  // Adds the mask a second time before the first softmax.
  void mask_again() {
    for (size_t n = 0; n < b.graph.nodes.size(); ++n)
      if (b.graph.nodes[n].op == "Softmax") {
        Node add;
        add.op = "Add", add.since = 21, add.inputs = {b.graph.nodes[n].inputs[0], mask};
        Value v;
        v.name = "twice";
        v.producer = static_cast<int>(n);
        b.graph.values.push_back(v);
        add.outputs = {static_cast<int>(b.graph.values.size()) - 1};
        b.graph.nodes[n].inputs[0] = add.outputs[0];
        b.graph.nodes.insert(b.graph.nodes.begin() + static_cast<std::ptrdiff_t>(n), add);
        relink();
        return;
      }
  }
  void relink() {
    for (Value& v : b.graph.values) v.producer = -1, v.consumers.clear();
    for (size_t n = 0; n < b.graph.nodes.size(); ++n) {
      for (int v : b.graph.nodes[n].inputs)
        if (v >= 0) b.graph.values[v].consumers.push_back(static_cast<int>(n));
      for (int v : b.graph.nodes[n].outputs) b.graph.values[v].producer = static_cast<int>(n);
    }
  }
  Program lowered(const Kernels* kernels) const { return lower(b.graph, match(b.graph), signature_of(b.graph), kernels); }
};

struct Call {
  int64_t batch, length;
  std::vector<int64_t> ids;
  std::vector<float> mask;         // [batch, 1, rows, length]
  int64_t rows = 1;

  Call(Numbers& r, int64_t batch_, const std::vector<int>& lengths, float shut, int64_t rows_ = 1) : batch(batch_), rows(rows_) {
    length = 0;
    for (int n : lengths) length = std::max<int64_t>(length, n);
    length += 3;   // padding for all
    for (int64_t i = 0; i < batch * length; ++i) ids.push_back(r.below(50));
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t k = 0; k < length; ++k) mask.push_back(k < lengths[static_cast<size_t>(b) % lengths.size()] ? 0.f : shut);
  }
  Threads caller(int threads) const {
    Threads c;
    c.threads = threads;
    c.inputs = {{Type::kInt64, ids.data(), {batch, length}}, {Type::kFloat, mask.data(), {batch, 1, rows, length}}};
    return c;
  }
};

std::vector<float> outputs(const Executor& executor, const Call& call, int threads) {
  Threads c = call.caller(threads);
  executor.run(c);
  // The hidden states, where they are handed out too, come first.
  const auto* floats = reinterpret_cast<const float*>(c.outputs.back().data());
  return std::vector<float>(floats, floats + Array::count(c.shapes.back()));
}

std::vector<size_t> kept(const Program& program, const Call& call) {
  Threads c = call.caller(1);
  Run run = prepare(program, c);
  std::vector<size_t> by_sequence(static_cast<size_t>(call.batch), run.length);
  for (size_t i = 0; i < run.order.size(); ++i) by_sequence[run.order[i]] = run.kept[i];
  return by_sequence;
}

// The same call, of which the executor is not told that padding may go.
void same_results(const Kernels* kernels, const Call& call, int64_t token, int threads) {
  const Model model(token);
  const Executor drops(model.lowered(kernels), threads);
  CHECK(drops.program().drops_padding);
  const Model keeps_all(token, true);
  const Executor keeps(keeps_all.lowered(kernels), threads);
  CHECK(!keeps.program().drops_padding);
  const std::vector<float> got = outputs(drops, call, threads), want = outputs(keeps, call, threads);
  CHECK_SAME(got.size(), want.size());
  float largest = 0, off = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::fmax(largest, std::fabs(want[i]));
    off = std::fmax(off, std::fabs(want[i] - got[i]));
    if (std::isnan(want[i]) != std::isnan(got[i])) off = INFINITY;
  }
  // Sums of another length round otherwise; seldom a code tips over.
  if (!CHECK(off <= .05f * largest)) std::fprintf(stderr, "  %s off by %g of %g\n", kernels->name, off, largest);
}

void lengths(const Kernels* kernels) {
  Numbers r(9);
  Model model(0);
  Program program = model.lowered(kernels);
  program.drops_padding = may_drop_padding(program);
  using Kept = std::vector<size_t>;
  CHECK(kept(program, Call(r, 3, {4, 9, 2}, kLowest)) == Kept({4, 9, 2}));
  CHECK(kept(program, Call(r, 3, {4, 9, 2}, -INFINITY)) == Kept({4, 9, 2}));
  CHECK(kept(program, Call(r, 3, {4, 9, 2}, -10000.f)) == Kept({12, 12, 12}));
  CHECK(kept(program, Call(r, 3, {4, 9, 2}, kLowest, 12)) == Kept({4, 9, 2}));
  CHECK(kept(program, Call(r, 2, {0, 5}, kLowest)) == Kept({8, 5}));       // no key at all: all keys weigh the same
  CHECK(kept(program, Call(r, 2, {0, 5}, NAN)) == Kept({8, 8}));
  Call odd(r, 1, {6}, kLowest, 9);
  for (int k = 0; k < 9; ++k) odd.mask[static_cast<size_t>(2 * 9 + k)] = kLowest;   // a query that counts has no key
  CHECK(kept(program, odd) == Kept({9}));
  Call hole(r, 1, {6}, kLowest);
  hole.mask[2] = kLowest;
  CHECK(kept(program, hole) == Kept({6}));
  Model last(-1);
  Program of_last = last.lowered(kernels);
  of_last.drops_padding = may_drop_padding(of_last);
  CHECK(kept(of_last, Call(r, 2, {4, 5}, kLowest)) == Kept({8, 8}));       // the token is among the padding
  CHECK(!may_drop_padding(Model(0, true).lowered(kernels)));
  CHECK(!may_drop_padding(Model(0, false, true).lowered(kernels)));
}

// With positions from outside, for all sequences or for each: they go with the sequences that are put in another order.
void same_with_positions(const Kernels* kernels, bool for_each, int64_t batch, const std::vector<int>& lengths, int threads) {
  Numbers r(17);
  const Call call(r, batch, lengths, kLowest);
  std::vector<float> results[2];
  for (bool all_tokens : {false, true}) {
    Written form;
    form.for_each = for_each;
    Modern m(form, static_cast<int>(batch), static_cast<int>(call.length));
    const int ids = m.b.input("ids"), mask = m.b.input("mask"), cosine = m.table("cosine"), sine = m.table("sine");
    int x = m.b.node("Gather", {m.b.constant({50, kWidth}, m.r.normals(50 * kWidth)), ids});
    if (for_each) x = layer_norm(m.b, m.r, x, kWidth);   // or the rows as they are
    for (int layer = 0; layer < 2; ++layer) x = m.layer(x, mask, cosine, sine);
    m.b.output(quantized_linear(m.b, m.r, m.b.fake_quantize(m.b.token(x, 0), 0.03f, 125), kWidth, 6, 1.f));
    if (all_tokens) m.b.output(x);
    const Executor executor(lower(m.b.graph, match(m.b.graph), signature_of(m.b.graph), kernels), threads);
    CHECK_SAME(executor.program().drops_padding, !all_tokens);
    Threads c = call.caller(threads);
    std::vector<std::vector<float>> tables;
    for (int table : {cosine, sine}) {
      const Array& a = m.known.at(table);
      tables.emplace_back(a.data.begin(), a.data.end());
      c.inputs.push_back({Type::kFloat, tables.back().data(), a.shape});
    }
    executor.run(c);
    const auto* floats = reinterpret_cast<const float*>(c.outputs.back().data());
    results[all_tokens].assign(floats, floats + batch * 6);
  }
  float largest = 0, off = 0;
  for (size_t i = 0; i < results[0].size(); ++i) {
    largest = std::fmax(largest, std::fabs(results[1][i]));
    off = std::fmax(off, std::fabs(results[1][i] - results[0][i]));
  }
  CHECK(off <= .05f * largest, "%s off by %g of %g", kernels->name, off, largest);
}

}  // namespace

int main() {
  std::vector<const Kernels*> tables(available_kernels().tables, available_kernels().tables + available_kernels().count);
  for (const Kernels* k : emulated_amx_tables()) tables.push_back(k);
  Numbers r(4);
  for (const Kernels* k : tables) {
    lengths(k);
    for (int threads : {1, 2, 3}) {
      same_results(k, Call(r, 1, {5}, kLowest), 0, threads);
      same_results(k, Call(r, 1, {130}, -INFINITY), 2, threads);
      same_results(k, Call(r, 3, {70, 3, 20}, kLowest), 0, threads);
      same_results(k, Call(r, 40, {20, 1, 60, 7, 33}, kLowest), 0, threads);
      same_results(k, Call(r, 9, {100, 0, 8}, kLowest, 103), 1, threads);
      for (bool for_each : {false, true}) {
        same_with_positions(k, for_each, 1, {5}, threads);
        same_with_positions(k, for_each, 3, {70, 3, 20}, threads);
        same_with_positions(k, for_each, 40, {20, 1, 60, 7, 33}, threads);
      }
    }
  }
  return check::report("padding");
}
