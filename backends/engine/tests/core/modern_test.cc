// Encoders newer than BERT: products that are cut into parts, rotary position embeddings and RMSNorm, in the forms that
// exporters give them.
#include <cmath>

#include "check.h"
#include "modern.h"
#include "run.h"

using namespace obert;
using namespace obert::testing;

namespace {

// Local attention: a key further than 8 tokens away counts for nothing.
Array window(int64_t length) {
  Array a;
  a.shape = {1, 1, length, length};
  for (int64_t i = 0; i < length * length; ++i) a.data.push_back(std::abs(i % length - i / length) > 8 ? -3.4028234663852886e38 : 0.0);
  return a;
}

void check_form(const Kernels* kernels, const Written& form, int layers, int batch, int length) {
  Modern m(form, batch, length);
  const int hidden = m.b.input("hidden"), mask = form.masked ? m.b.input("mask") : -1;
  const int cosine = m.table("cosine"), sine = m.table("sine");
  m.known[hidden] = m.rows({batch, length, kWidth});
  if (form.masked) m.known[mask] = window(length);
  int x = hidden;
  for (int i = 0; i < layers; ++i) x = m.layer(x, mask, cosine, sine);
  if (form.picked) x = m.b.node("Relu", {quantized_linear(m.b, m.r, m.b.fake_quantize(m.b.token(x, 0), 0.03f, 125), kWidth, 8, 1.f)});
  m.b.output(x);
  const Claims claims = claim(m.b.graph);
  CHECK_SAME(claims.parts.size(), 1u);
  if (claims.parts.size() != 1) return;
  CHECK_SAME(claims.parts[0].size(), m.b.graph.nodes.size());
  int rotations = 0, tables = 0, products = 0;
  for (const Step& step : lower(m.b.graph, match(m.b.graph), signature_of(m.b.graph), kernels).steps) {
    rotations += step.kind == StepKind::kRotary;
    tables += step.by_position;
    products += step.kind == StepKind::kProduct;
  }
  CHECK_SAME(rotations, 2 * layers);
  // Layers share them, though each unsqueezes them anew.
  if (form.ops != Written::kParts || form.table == Written::kUnsqueezed || form.table == Written::kFourDimensions) CHECK_SAME(tables, 2);
  // Queries, keys and values are one, unless they are rounded, and but for the layer whose queries are of one token; then attention's output and three.
  CHECK_SAME(products, form.rounded ? 7 * layers + form.picked : 5 * layers + 2 * form.picked);
  const Array got = run_engine(m.b.graph, m.known, kernels, 2).at(x), expected = Reference(m.b.graph).run(m.known).at(x);
  CHECK(got.shape == expected.shape);
  const Differences d(got, expected);
  // A code that falls to the other side moves a result by a step times a weight, 0.02, and codes of the next layer with it.
  CHECK(d.most <= (layers > 1 ? 0.4 : 0.1) && d.mean <= (layers > 1 ? 0.01 : 0.001),
        "largest %g, mean %g", d.most, d.mean);
}

// What looks like it and is something else is no rotation, whatever of it the engine takes.
void check_left() {
  enum Change { kNone, kOtherOrder, kNoMinus, kOtherHalves, kOtherHeads, kTableOfHeads, kTableOfOneToken, kHalfTable, kChanges };
  for (int change = kNone; change < kChanges; ++change) {
    Modern m(Written(), 1, 5);
    Builder& b = m.b;
    const int hidden = b.input("hidden");
    const std::vector<int> three = m.heads(b.fake_quantize(hidden, 0.03f, 125));
    const int x = b.transpose(three[0], {0, 2, 1, 3}), y = b.transpose(three[1], {0, 2, 1, 3});
    const int cosine = b.input("cosine", {1, change == kTableOfHeads ? kHeads : 1, change == kTableOfOneToken ? 1 : -1,
                                          change == kHalfTable ? 1 : kSize});
    const int sine = b.input("sine", {1, 1, -1, kSize});
    const auto slice = [&](int from, int to) {
      return b.node("Slice", {change == kOtherHeads ? y : x, b.constant({from}), b.constant({to}), b.constant({3})});
    };
    const int middle = change == kOtherHalves ? kSize / 4 : kSize / 2;
    const int first = slice(0, middle), second = slice(middle, kSize);
    const int minus = change == kNoMinus ? second : b.node("Neg", {second});
    const int turned = b.node("Concat", change == kOtherOrder ? std::vector<int>{first, minus} : std::vector<int>{minus, first}, along(-1));
    const int rotated = b.node("Add", {b.node("Mul", {x, cosine}), b.node("Mul", {turned, sine})});
    b.output(b.node("MatMul", {rotated, b.transpose(y, {0, 1, 3, 2})}));
    int rotations = 0;
    for (const Op& op : match(b.graph).ops) rotations += op.kind == OpKind::kRotary;
    CHECK(rotations == (change == kNone), "change %d: %d rotations", change, rotations);
    for (const Part& part : claim(b.graph).parts)   // scores alone are handed to nobody
      for (int n : part) CHECK(b.graph.nodes[n].op != "Slice" || b.graph.nodes[n].inputs[0] != x, "change %d", change);
  }
}

}  // namespace

int main() {
  check_left();
  const KernelSet set = available_kernels();
  for (size_t i = 0; i < set.count; ++i) {
    const Kernels* k = set.tables[i];
    std::printf("%s\n", k->name);
    for (auto stack : {Written::kSlices, Written::kGathers, Written::kSplits, Written::kColumns})
      for (auto table : {Written::kUnsqueezed, Written::kFourDimensions, Written::kConstant, Written::kTwoDimensions}) {
        const int pick = static_cast<int>(stack) + static_cast<int>(table);
        Written f;
        f.stack = stack, f.table = table;
        f.halves_by_split = pick % 2 == 0;
        f.before_transpose = table != Written::kTwoDimensions && pick % 3 == 0;
        f.scaled = pick % 2 == 1;
        f.masked = pick % 3 == 1;
        f.gelu_in_parts = (stack + table / 2) % 2 == 1;
        f.rounded = (stack + 2 * table) % 3 == 1;
        f.norm = static_cast<Written::Norm>((2 * static_cast<int>(stack) + static_cast<int>(table)) % 5);
        if (table == Written::kTwoDimensions) f.ops = pick % 2 ? Written::kWhole : Written::kWholeOfTokens;
        check_form(k, f, 1, 1, 70);
        check_form(k, f, 2, 3, 21);
        f.picked = true;
        check_form(k, f, 2, 2, 33);
        f.for_each = f.ops != Written::kParts || table != Written::kTwoDimensions;
        if (table != Written::kConstant) check_form(k, f, 1, 3, 17);
        f.picked = false;
        check_form(k, f, 2, 3, 67);
      }
  }
  return check::report("modern");
}
