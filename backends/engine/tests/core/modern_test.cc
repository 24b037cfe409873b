// Encoders newer than BERT: products that are cut into parts, rotary position embeddings and RMSNorm, in the forms that
// exporters give them.
#include <cmath>

#include "builder.h"
#include "check.h"
#include "run.h"

using namespace obert;
using namespace obert::testing;

namespace {

constexpr int kWidth = 48, kHeads = 3, kSize = 16, kInner = 20;

Node along(int64_t axis) {
  Node n;
  n.ints["axis"] = axis;
  return n;
}

// How one exporter writes what another writes otherwise.
struct Written {
  enum Stack { kSlices, kGathers, kSplits, kColumns } stack = kSlices;        // queries, keys and values of one product
  enum Table { kUnsqueezed, kFourDimensions, kConstant, kTwoDimensions } table = kUnsqueezed;
  enum Norm { kLayerNorm, kRmsNorm, kReciprocal, kQuotient, kInverse } norm = kLayerNorm;   // the last three in parts
  bool halves_by_split = false;      // or by Slice
  bool before_transpose = false;     // heads are rotated as [batch, sequence, heads, size]
  bool scaled = false;               // queries are scaled before
  bool for_each = false;             // tables have positions for each sequence
  bool picked = false;               // one token is read
  bool masked = false;
};

struct Modern {
  Builder b;
  Numbers r;
  Written form;
  int batch, length;
  std::map<int, Array> known;

  Modern(const Written& f, int sequences, int tokens)
      : r(static_cast<uint32_t>(f.stack * 100 + f.table * 10 + tokens)), form(f), batch(sequences), length(tokens) {}

  // Numbers between -1 and 1, and halves that differ: nothing here needs angles.
  Array rows(const std::vector<int64_t>& shape) {
    Array a;
    a.shape = shape;
    for (int64_t i = 0; i < Array::count(shape); ++i) a.data.push_back(2. * r.uniform() - 1.);
    return a;
  }

  int table(const char* name) {
    const int64_t each = form.for_each ? batch : 1;
    const bool sequence_first = form.before_transpose;
    if (form.table == Written::kUnsqueezed) {
      const int x = b.input(name, {-1, -1, kSize});
      known[x] = rows({each, length, kSize});
      return x;
    }
    const std::vector<int64_t> four = sequence_first ? std::vector<int64_t>{each, length, 1, kSize} : std::vector<int64_t>{each, 1, length, kSize};
    if (form.table == Written::kFourDimensions) {
      const int x = b.input(name, {-1, sequence_first ? -1 : 1, sequence_first ? 1 : -1, kSize});
      known[x] = rows(four);
      return x;
    }
    const Array a = rows(four);
    return b.constant(form.table == Written::kTwoDimensions ? std::vector<int64_t>{length, kSize} : four, std::vector<float>(a.data.begin(), a.data.end()));
  }

  int shown(int x) {
    if (form.table != Written::kUnsqueezed) return x;
    const int y = b.node("Unsqueeze", {x, b.constant({form.before_transpose ? 2 : 1})});
    b.describe(y, form.before_transpose ? std::vector<int64_t>{-1, -1, 1, kSize} : std::vector<int64_t>{-1, 1, -1, kSize});
    return y;
  }

  int rotated(int x, int cosine, int sine) {
    std::vector<int> half;
    if (form.halves_by_split) half = b.nodes("Split", {x, b.constant({kSize / 2, kSize / 2})}, 2, along(-1));
    else
      half = {b.node("Slice", {x, b.constant({0}), b.constant({kSize / 2}), b.constant({3}), b.constant({1})}),
              b.node("Slice", {x, b.constant({kSize / 2}), b.constant({INT64_MAX}), b.constant({-1}), b.constant({1})})};
    const int turned = b.node("Concat", {b.node("Neg", {half[1]}), half[0]}, along(-1));
    return b.node("Add", {b.node("Mul", {x, cosine}), b.node("Mul", {turned, sine})});
  }

  // Queries, keys and values as [batch, sequence, heads, size].
  std::vector<int> heads(int x) {
    const int all = quantized_linear(b, r, x, kWidth, 3 * kWidth, 0.5f);
    std::vector<int> three;
    if (form.stack == Written::kColumns) {
      for (int part : b.nodes("Split", {all}, 3, along(2))) three.push_back(b.node("Reshape", {part, b.constant({0, 0, kHeads, kSize})}));
      return three;
    }
    const int stacked = b.node("Reshape", {all, b.constant({0, 0, 3, -1, kSize})});
    if (form.stack == Written::kSplits) {
      for (int part : b.nodes("Split", {stacked, b.constant({1, 1, 1})}, 3, along(2))) three.push_back(b.node("Squeeze", {part, b.constant({2})}));
      return three;
    }
    for (int64_t i = 0; i < 3; ++i) {
      if (form.stack == Written::kGathers) {
        three.push_back(b.node("Gather", {stacked, b.index(i)}, along(2)));
        continue;
      }
      const int part = b.node("Slice", {stacked, b.constant({i}), b.constant({i + 1}), b.constant({2})});
      three.push_back(b.node("Squeeze", {part, b.constant({2})}));
    }
    return three;
  }

  int norm(int x) {
    if (form.norm == Written::kLayerNorm) return layer_norm(b, r, x, kWidth);
    const int gamma = b.constant({kWidth}, r.normals(kWidth, 0.7f));
    Node n = along(-1);
    n.floats["epsilon"] = 1e-3f;
    if (form.norm == Written::kRmsNorm) return b.node("RMSNormalization", {x, gamma}, n);
    const int square = form.norm == Written::kQuotient ? b.node("Mul", {x, x}) : b.node("Pow", {x, b.scalar(2.f)});
    const int mean = b.node("ReduceMean", {square, b.constant({-1})});
    const int root = b.node("Sqrt", {b.node("Add", {mean, b.scalar(1e-3f)})});
    if (form.norm == Written::kQuotient) return b.node("Mul", {b.node("Div", {x, root}), gamma});
    const int inverse = form.norm == Written::kReciprocal ? b.node("Reciprocal", {root}) : b.node("Div", {b.scalar(1.f), root});
    return b.node("Mul", {gamma, b.node("Mul", {x, inverse})});
  }

  int layer(int hidden, int mask, int cosine, int sine) {
    std::vector<int> three = heads(b.fake_quantize(hidden, 0.03f, 125));
    if (form.scaled) three[0] = b.node("Mul", {three[0], b.scalar(0.25f)});
    const auto turn = [&](int x) { return rotated(x, shown(cosine), shown(sine)); };
    const auto in_heads = [&](int x) { return b.transpose(x, {0, 2, 1, 3}); };
    int q, k;
    if (form.before_transpose) q = in_heads(turn(three[0])), k = in_heads(turn(three[1]));
    else q = turn(in_heads(three[0])), k = turn(in_heads(three[1]));
    int scores = b.node("MatMul", {q, b.transpose(k, {0, 1, 3, 2})});
    if (!form.scaled) scores = b.node("Mul", {scores, b.scalar(0.25f)});
    if (mask >= 0) scores = b.node("Add", {scores, mask});
    int context = b.transpose(b.node("MatMul", {b.node("Softmax", {scores}), in_heads(three[2])}), {0, 2, 1, 3});
    context = b.node("Reshape", {context, b.constant({0, 0, kWidth})});
    const int attended = b.node("Add", {hidden, quantized_linear(b, r, b.fake_quantize(context, 0.02f, 120), kWidth, kWidth, 0.5f)});
    const int x = b.fake_quantize(norm(attended), 0.03f, 125);
    const std::vector<int> both = b.nodes("Split", {quantized_linear(b, r, x, kWidth, 2 * kInner, 0.5f)}, 2, along(-1));
    const int gated = b.node("Mul", {b.node("Gelu", {both[0]}), both[1]});
    return b.node("Add", {attended, quantized_linear(b, r, b.fake_quantize(gated, 0.02f, 100), kInner, kWidth, 0.5f)});
  }
};

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
  if (form.table == Written::kUnsqueezed || form.table == Written::kFourDimensions) CHECK_SAME(tables, 2);
  // Queries, keys and values are one, but for the layer whose queries are of one token; then attention's output and three.
  CHECK_SAME(products, 5 * layers + (form.picked ? 2 : 0));
  const Array got = run_engine(m.b.graph, m.known, kernels, 2).at(x), expected = Reference(m.b.graph).run(m.known).at(x);
  CHECK(got.shape == expected.shape);
  double most = 0, sum = 0;
  for (size_t i = 0; i < got.data.size(); ++i) {
    const double d = std::fabs(got.data[i] - expected.data[i]);
    if (!(d <= most)) most = d;
    sum += d;
  }
  // A code that falls to the other side moves a result by a step times a weight, 0.02, and codes of the next layer with it.
  CHECK(most <= (layers > 1 ? 0.4 : 0.1) && sum / static_cast<double>(got.data.size()) <= (layers > 1 ? 0.01 : 0.001),
        "largest %g, mean %g", most, sum / static_cast<double>(got.data.size()));
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
        f.norm = static_cast<Written::Norm>((2 * static_cast<int>(stack) + static_cast<int>(table)) % 5);
        check_form(k, f, 1, 1, 70);
        check_form(k, f, 2, 3, 21);
        f.picked = true;
        check_form(k, f, 2, 2, 33);
        f.for_each = table != Written::kTwoDimensions;
        if (table != Written::kConstant) check_form(k, f, 1, 3, 17);
        f.picked = false;
        check_form(k, f, 2, 3, 67);
      }
  }
  return check::report("modern");
}
