// Heads that several others share, norms of heads, scaled features and rows of a matrix, in the forms that exporters give them.
#include "check.h"
#include "run.h"
#include "shared_heads.h"

using namespace obert;
using namespace obert::testing;

namespace {

void check_form(const Kernels* kernels, const Shared& form, int layers, int batch, int length) {
  SharedHeads m(form, batch, length);
  const int hidden = m.b.input("hidden", {-1, -1, SharedHeads::kHidden});
  const Array tokens = m.tokens();
  int x = m.norm(hidden, SharedHeads::kHidden, Shared::kOp);
  for (int i = 0; i < layers; ++i) x = m.layer(x);
  m.b.output(x);
  const Claims claims = claim(m.b.graph);
  CHECK_SAME(claims.parts.size(), 1u);
  if (claims.parts.size() != 1) {
    for (const Skip& skip : claims.skips) std::printf("%s: %s\n", m.b.graph.nodes[skip.node].op.c_str(), skip.reason.c_str());
    return;
  }
  CHECK_SAME(claims.parts[0].size(), m.b.graph.nodes.size());
  int shared = 0, norms = 0;
  for (const Step& step : lower(m.b.graph, match(m.b.graph), signature_of(m.b.graph), kernels).steps) {
    shared += step.kind == StepKind::kAttention && step.key.width * form.group == step.x.width;
    norms += step.kind == StepKind::kLayerNorm && step.head_dim == SharedHeads::kEach;
  }
  CHECK_SAME(shared, layers);
  CHECK_SAME(norms, form.norm == Shared::kNone ? 0 : 2 * layers);
  const Array got = run_engine(m.b.graph, {{hidden, tokens}}, kernels, 2).at(x), expected = Reference(m.b.graph).run({{hidden, tokens}}).at(x);
  CHECK(got.shape == expected.shape);
  const Differences d(got, expected);
  // A code that falls to the other side moves a result by a step times a weight, 0.02, and codes of the next layer with it.
  CHECK(d.most <= (layers > 1 ? 0.4 : 0.1) && d.mean <= (layers > 1 ? 0.01 : 0.001), "group %d: largest %g, mean %g", form.group, d.most, d.mean);
}

// What looks like it and is something else is no attention, whatever of it the engine takes.
void check_left() {
  enum Change { kNone, kOtherAxis, kTooFew, kUnknownCount, kOtherSize, kValuesOfOthers, kNormOfTokens, kChanges };
  for (int change = kNone; change < kChanges; ++change) {
    Shared form;
    SharedHeads m(form, 2, 5);
    Builder& b = m.b;
    constexpr int kCount = SharedHeads::kCount, kEach = SharedHeads::kEach;
    const int x = b.fake_quantize(b.input("hidden", {-1, -1, SharedHeads::kHidden}), 0.03f, 125);
    int q = m.heads(x, kCount, Shared::kNone);
    const int k = m.heads(x, kCount / 2, Shared::kNone), v = m.heads(x, change == kValuesOfOthers ? kCount / 3 : kCount / 2, Shared::kNone);
    if (change == kNormOfTokens) {   // gamma has as many elements as a head, and the mean is over tokens
      const int mean = b.node("ReduceMean", {b.node("Mul", {q, q}), b.constant({2})});
      const int root = b.node("Sqrt", {b.node("Add", {mean, b.scalar(1e-3f)})});
      q = b.node("Mul", {b.node("Div", {q, root}), m.gamma(kEach)});
    }
    const auto copies = [&](int heads) {
      const int five = b.node("Unsqueeze", {heads, b.constant({change == kOtherAxis ? 1 : 2})});
      int shape = change == kOtherAxis ? b.constant({2, 2, kCount / 2, 5, kEach}) : b.constant({2, kCount / 2, change == kTooFew ? 1 : 2, 5, kEach});
      if (change == kUnknownCount) shape = b.input("shape");
      if (change == kOtherSize) shape = b.constant({2, kCount / 2, 2, 5, 2 * kEach});
      return b.node("Reshape", {b.node("Expand", {five, shape}), b.constant({2, kCount, 5, kEach})});
    };
    const int probabilities = b.node("Softmax", {b.node("MatMul", {q, m.turned(copies(k))})}, SharedHeads::last());
    b.output(b.node("Reshape", {b.transpose(b.node("MatMul", {probabilities, copies(v)}), {0, 2, 1, 3}), b.constant({0, 0, SharedHeads::kWide})}));
    int attended = 0;
    for (const Op& op : match(b.graph).ops) attended += op.kind == OpKind::kAttention;
    CHECK(attended == (change == kNone), "change %d: %d", change, attended);
    for (const Part& part : claim(b.graph).parts)
      for (int n : part) CHECK(change == kNone || b.graph.nodes[n].op != "Softmax", "change %d", change);
  }
}

// A product of the rows of a matrix, or of a tensor of four dimensions: what it hands out has as many. No sequences can be
// made of them.
void check_rows(const Kernels* kernels, const std::vector<int64_t>& shape) {
  for (bool attends : {false, true}) {
    SharedHeads m(Shared(), 2, 5);
    Builder& b = m.b;
    constexpr int kHidden = SharedHeads::kHidden;
    const int rows = b.input("rows", shape);
    const int product = quantized_linear(b, m.r, b.fake_quantize(rows, 0.03f, 125), kHidden, kHidden, 0.5f);
    const int normed = m.norm(b.node("Add", {product, rows}), kHidden, Shared::kOp);
    for (int v = 0; v < static_cast<int>(b.graph.values.size()); ++v)   // as ONNX Runtime infers it
      if (b.graph.values[v].producer >= 0 && b.graph.nodes[b.graph.values[v].producer].op != "DequantizeLinear") b.describe(v, shape);
    b.output(normed);
    if (attends) b.output(b.node("Reshape", {m.attended(b.fake_quantize(b.node("Reshape", {normed, b.constant({2, 5, kHidden})}), 0.03f, 125)), b.constant({0, 0, SharedHeads::kWide})}));
    const Claims claims = claim(b.graph);
    if (attends) {   // in a part of its own, which is handed sequences
      CHECK_SAME(claims.parts.size(), 2u);
      CHECK(claims.skips.empty(), "%s", claims.skips.empty() ? "" : claims.skips[0].reason.c_str());
      continue;
    }
    Array a = m.tokens();
    a.shape = shape;
    const Array got = run_engine(b.graph, {{rows, a}}, kernels, 2).at(normed), expected = Reference(b.graph).run({{rows, a}}).at(normed);
    CHECK(got.shape == expected.shape);
    const Differences d(got, expected);
    CHECK(d.most <= 0.1 && d.mean <= 0.001, "largest %g, mean %g", d.most, d.mean);
  }
}

// The rows of a matrix are handed out as such, whoever reads them as sequences too.
void check_handed_out(const Kernels* kernels) {
  Shared form;
  form.matrix = true;
  SharedHeads m(form, 3, 7);
  Builder& b = m.b;
  const int hidden = b.input("hidden", {-1, -1, SharedHeads::kHidden}), context = m.attended(b.fake_quantize(hidden, 0.03f, 125));
  const int product = quantized_linear(b, m.r, b.fake_quantize(context, 0.02f, 120), SharedHeads::kWide, SharedHeads::kHidden, 0.5f);
  const int sequences = b.node("Reshape", {product, b.constant({3, 7, -1})});
  b.output(product);
  b.output(sequences);
  CHECK_SAME(claim(b.graph).parts.size(), 1u);
  const Array tokens = m.tokens();
  const std::map<int, Array> got = run_engine(b.graph, {{hidden, tokens}}, kernels, 2);
  CHECK(got.at(product).shape == (std::vector<int64_t>{21, SharedHeads::kHidden}));
  CHECK(got.at(sequences).shape == (std::vector<int64_t>{3, 7, SharedHeads::kHidden}));
  CHECK(got.at(product).data == got.at(sequences).data);
}

// Two products with a shape between them that both read: each has tokens of its own, and is a part of its own.
void check_apart() {
  SharedHeads m(Shared(), 1, 1);
  Builder& b = m.b;
  constexpr int kHidden = SharedHeads::kHidden;
  const int one = b.input("one", {-1, -1, kHidden}), other = b.input("other", {-1, -1, kHidden});
  const int w = b.constant({kHidden, kHidden}, m.r.weights(kHidden, kHidden, 0.5f));
  Node axis;
  axis.ints["axis"] = 1;
  const int matrix = b.node("DequantizeLinear", {w, b.constant({kHidden}, std::vector<float>(kHidden, 0.01f)), b.constant({kHidden}, std::vector<int8_t>(kHidden, 0))}, axis);
  std::vector<int> results;
  for (int x : {one, other}) {
    results.push_back(b.node("Relu", {b.node("MatMul", {b.fake_quantize(x, 0.03f, 125), matrix})}));
    b.output(results.back());
  }
  for (const Part& part : claim(b.graph).parts) {
    const Graph alone = part_graph(b.graph, part);
    int read = 0;
    for (int v : signature_of(alone).inputs) read += v == one || v == other;
    CHECK(read < 2, "a part reads %d tensors of other tokens", read);
    for (const Node& n : alone.nodes) CHECK(n.op != "DequantizeLinear" || n.inputs[0] != w);
  }
}

// A constant with more dimensions than tokens makes something else of them.
void check_more_dimensions() {
  for (const char* op : {"Add", "Mul"})
    for (bool more : {false, true}) {
      SharedHeads m(Shared(), 2, 5);
      Builder& b = m.b;
      constexpr int kHidden = SharedHeads::kHidden;
      const int x = b.input("x", {2, 5, kHidden}), product = quantized_linear(b, m.r, b.fake_quantize(x, 0.03f, 125), kHidden, kHidden, 0.5f);
      b.describe(product, {2, 5, kHidden});
      const int y = b.node(op, {product, b.constant({1, 1, 1, kHidden}, m.r.normals(kHidden))});
      b.describe(y, more ? std::vector<int64_t>{1, 2, 5, kHidden} : std::vector<int64_t>{2, 5, kHidden});
      b.output(y);
      const Match found = match(b.graph);
      CHECK(found.claimed.back() == !more, "%s, more %d", op, more);
    }
}

}  // namespace

int main() {
  check_left();
  check_apart();
  check_more_dimensions();
  const KernelSet set = available_kernels();
  for (size_t i = 0; i < set.count; ++i) {
    const Kernels* k = set.tables[i];
    std::printf("%s\n", k->name);
    check_rows(k, {10, SharedHeads::kHidden});
    check_rows(k, {2, 1, 5, SharedHeads::kHidden});
    check_handed_out(k);
    int pick = 0;
    for (auto norm : {Shared::kNone, Shared::kParts, Shared::kOp, Shared::kCentred})
      for (int group : {2, 3, 6}) {
        ++pick;
        Shared f;
        f.norm = norm, f.group = group;
        f.scale = static_cast<Shared::Scale>(pick % 4);
        f.norm_after_transpose = pick % 2 == 0;
        f.gamma_is_a_sum = pick % 3 == 0;
        f.joined = pick % 5 == 1;
        f.whole = pick % 4 == 2;
        f.matrix = pick % 3 == 1;
        f.matrix_before = pick % 4 < 2;
        f.gated = pick % 2 == 1;
        f.quantized_heads = pick % 4 == 3;
        check_form(k, f, 1, 1, 70);
        check_form(k, f, 2, 3, 21);
        f.matrix = !f.matrix;
        check_form(k, f, 1, 2, 5);
      }
  }
  return check::report("shared_heads");
}
