// Encoder layers through matching, lowering and running, against the naive interpreter.
#include <cmath>

#include "builder.h"
#include "check.h"
#include "run.h"

#include "emulated_amx.h"

using namespace obert;
using namespace obert::testing;

namespace {

Array tokens(Numbers& r, int64_t batch, int64_t length, int64_t width) {
  Array a;
  a.shape = {batch, length, width};
  for (int64_t i = 0; i < batch * length * width; ++i) a.data.push_back(static_cast<float>(r.normal()));
  return a;
}

// Padding at the end of every sequence but the first.
Array padding(int64_t batch, int64_t length) {
  Array a;
  a.shape = {batch, 1, 1, length};
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < length; ++i) a.data.push_back(i > 0 && i >= length - b ? -3.4028234663852886e38 : 0.0);
  return a;
}

// Largest and mean distance. An activation that rounds to the other side moves a result by a step of
// its quantisation times a weight, so few results may be a step away, and most must not be.
void compare(const Array& got, const Array& expected, double largest, double mean) {
  CHECK(got.shape == expected.shape);
  double most = 0, sum = 0;
  for (size_t i = 0; i < got.data.size(); ++i) {
    double d = std::fabs(got.data[i] - expected.data[i]);
    if (!(d <= most)) most = d;
    sum += d;
  }
  CHECK(most <= largest);
  CHECK(sum / static_cast<double>(got.data.size()) <= mean);
  if (most > largest || sum / static_cast<double>(got.data.size()) > mean)
    std::fprintf(stderr, "  largest %g mean %g\n", most, sum / static_cast<double>(got.data.size()));
}

// Whether queries, keys and values are what one product writes, in codes or in floats.
bool one_product(const Program& p, bool in_codes) {
  for (const Step& s : p.steps) {
    if (s.kind != StepKind::kAttention) continue;
    if (p.buffers[s.x.buffer].quantized != in_codes || s.key.buffer != s.x.buffer || s.value.buffer != s.x.buffer) return false;
  }
  return true;
}

void layers(const Kernels* kernels, int count, int batch, int length, int threads, bool masked, bool in_codes = false) {
  Builder b;
  Numbers r(static_cast<uint32_t>(count * 1000 + batch * 100 + length));
  int hidden = b.input("hidden"), mask = masked ? b.input("mask") : -1;
  int x = hidden;
  for (int i = 0; i < count; ++i) x = encoder_layer(b, r, x, mask, 64, 4, 128, 0.4f, in_codes);
  b.output(x);
  CHECK(one_product(lower(b.graph, match(b.graph), signature_of(b.graph), kernels), in_codes));
  Claims claims = claim(b.graph);
  CHECK_SAME(claims.parts.size(), 1u);
  CHECK_SAME(claims.parts[0].size(), b.graph.nodes.size());
  std::map<int, Array> known = {{hidden, tokens(r, batch, length, 64)}};
  if (masked) known[mask] = padding(batch, length);
  Array got = run_engine(b.graph, known, kernels, threads).at(x);
  // One rounding to the other side weighs more among few tokens, and a second layer spreads it.
  compare(got, Reference(b.graph).run(known).at(x), 0.2, batch * length < 32 || count > 1 ? 0.02 : 0.002);
}

// What a classifier reads of the last layer: its first token, or another. `also`: hidden states are read too.
struct Head {
  int64_t token = 0;
  bool by_slice = false;
  enum { kNothing, kHidden, kOtherToken } also = kNothing;
  bool rounded = false;   // results are quantised and dequantised
  bool in_codes = false;  // and so are queries, keys and values
};

void classifier(const Kernels* kernels, int count, int batch, int length, int threads, const Head& head, bool query_mask) {
  Builder b;
  Numbers r(static_cast<uint32_t>(count * 1000 + batch * 100 + length));
  int hidden = b.input("hidden"), mask = b.input("mask");
  int x = hidden;
  for (int i = 0; i < count; ++i) x = encoder_layer(b, r, x, mask, 64, 4, 128, 0.4f, head.in_codes);
  int first = b.token(x, head.token, head.by_slice);
  int pooled = b.node("Tanh", {quantized_linear(b, r, b.fake_quantize(first, 0.03f, 125), 64, 64, 0.4f)});
  int logits = quantized_linear(b, r, b.fake_quantize(pooled, 0.01f, 128), 64, 3, 1.f);
  b.output(head.rounded ? b.fake_quantize(logits, 0.02f, 128) : logits);
  if (head.also == Head::kHidden) b.output(x);
  if (head.also == Head::kOtherToken) b.output(b.token(x, length - 1));
  Claims claims = claim(b.graph);
  CHECK_SAME(claims.parts.size(), 1u);
  CHECK_SAME(claims.parts[0].size(), b.graph.nodes.size());
  std::map<int, Array> known = {{hidden, tokens(r, batch, length, 64)}, {mask, padding(batch, length)}};
  if (query_mask) {
    Array& m = known[mask];
    m.shape = {1, 1, length, length};
    m.data.clear();
    for (int i = 0; i < length * length; ++i) m.data.push_back(i % length > i / length + 2 ? -1e4 : 0.1 * r.normal());
  }
  auto got = run_engine(b.graph, known, kernels, threads);
  auto expected = Reference(b.graph).run(known);
  // Weights of 16 bits let an average of codes fall to the other side of a border more often than floats do.
  for (const auto& [value, array] : got) compare(array, expected.at(value), 0.2, head.in_codes ? 0.04 : 0.02);

  int narrow = 0, products = 0;
  for (const Step& step : lower(b.graph, match(b.graph), signature_of(b.graph), kernels).steps) {
    narrow += step.picked && step.kind == StepKind::kAttention;
    products += step.picked && step.kind == StepKind::kProduct;
  }
  // The last layer's queries, output and feed-forward, and the head's two; its keys and values need all tokens.
  CHECK_SAME(narrow, head.also == Head::kNothing ? 1 : 0);
  CHECK_SAME(products, head.also == Head::kNothing ? 6 : 2);
}

// Of one of several products that are computed as one, read as a whole too.
void token_of_a_product(const Kernels* kernels, int batch, int length, bool in_codes) {
  Builder b;
  Numbers r(11);
  int hidden = b.input("hidden"), x = b.fake_quantize(hidden, 0.03f, 125);
  int a = quantized_linear(b, r, x, 64, 32, 0.4f), c = quantized_linear(b, r, x, 64, 16, 0.4f);
  if (in_codes) a = b.fake_quantize(a, 0.02f, 127), c = b.fake_quantize(c, 0.015f, 131);
  b.output(a);
  b.output(c);
  b.output(b.token(c, -1));
  b.output(b.node("Relu", {b.token(c, -1, true)}));
  CHECK_SAME(claim(b.graph).parts.size(), 1u);
  std::map<int, Array> known = {{hidden, tokens(r, batch, length, 64)}};
  auto expected = Reference(b.graph).run(known);
  auto got = run_engine(b.graph, known, kernels, 2);
  CHECK_SAME(got.size(), 4u);
  for (const auto& [value, array] : got) compare(array, expected.at(value), in_codes ? .02001 : 1e-5, in_codes ? 1e-4 : 1e-6);
}

void token_beyond_the_sequence(const Kernels* kernels) {
  Builder b;
  Numbers r(5);
  int hidden = b.input("hidden");
  b.output(quantized_linear(b, r, b.fake_quantize(b.token(hidden, 0), 0.03f, 125), 64, 64, 0.4f));
  CHECK(claim(b.graph).parts.size() == 1u);   // from outside: Gather stays there
  Builder c;
  hidden = c.input("hidden");
  c.output(c.token(encoder_layer(c, r, hidden, -1, 64, 4, 128, 0.4f), 3));
  for (int64_t length : {0, 1, 3}) {
    bool refused = false;
    try {
      run_engine(c.graph, {{hidden, tokens(r, 2, length, 64)}}, kernels, 2);
    } catch (const std::runtime_error& e) {
      refused = std::string(e.what()).find("token 3") != std::string::npos;
    }
    CHECK(refused);
  }
  CHECK_SAME(run_engine(c.graph, {{hidden, tokens(r, 0, 4, 64)}}, kernels, 2).begin()->second.shape[0], 0);
}

// A graph as quantize_static writes it: results of products are quantised before their bias, and so
// are queries, keys, scores, probabilities and values.
void foreign_layer(const Kernels* kernels, int batch, int length) {
  Builder b;
  Numbers r(static_cast<uint32_t>(length));
  int hidden = b.input("hidden"), mask = b.input("mask");
  int split = b.constant({0, 0, 4, 16}), join = b.constant({0, 0, 64});
  int x = b.fake_quantize(hidden, 0.03f, 125);
  auto linear = [&](int input) {
    std::vector<int8_t> data = r.weights(64, 64, 0.4f);
    int w = b.constant({64, 64}, data);
    int dq = b.node("DequantizeLinear", {w, b.scalar(0.003f)});
    int product = b.fake_quantize(b.node("MatMul", {input, dq}), 0.03f, 120);
    return b.node("Add", {b.constant({64}, r.normals(64, 0.1f)), product});
  };
  auto heads = [&](std::vector<int64_t> order) {
    int y = b.transpose(b.node("Reshape", {linear(x), split}), std::move(order));
    return b.fake_quantize(b.node("Mul", {y, b.scalar(0.5f)}), 0.02f, 118);
  };
  int q = heads({0, 2, 1, 3}), k = heads({0, 2, 3, 1});
  int v = b.fake_quantize(b.transpose(b.node("Reshape", {linear(x), split}), {0, 2, 1, 3}), 0.04f, 127);
  int scores = b.node("Add", {b.fake_quantize(b.node("MatMul", {q, k}), 0.05f, 128), mask});
  int p = b.fake_quantize(b.node("Softmax", {scores}), 1.f / 255, 0);
  int context = b.fake_quantize(b.node("MatMul", {p, v}), 0.03f, 127);
  context = b.fake_quantize(b.node("Reshape", {b.transpose(context, {0, 2, 1, 3}), join}), 0.03f, 127);
  int out = layer_norm(b, r, b.node("Add", {linear(context), hidden}), 64);
  b.output(out);
  Claims claims = claim(b.graph);
  CHECK_SAME(claims.parts.size(), 1u);
  if (claims.parts.size() == 1) CHECK_SAME(claims.parts[0].size(), b.graph.nodes.size());
  std::map<int, Array> known = {{hidden, tokens(r, batch, length, 64)}, {mask, padding(batch, length)}};
  Array got = run_engine(b.graph, known, kernels, 2).at(out);
  compare(got, Reference(b.graph).run(known).at(out), 0.3, 0.006);
}

// Where(IsNaN(p), 0, p), as torch writes it: a sequence without any key attends to nothing.
void sequence_without_keys(const Kernels* kernels) {
  Builder b;
  Numbers r(7);
  int hidden = b.input("hidden"), mask = b.input("mask");
  int split = b.constant({0, 0, 4, 16}), join = b.constant({0, 0, 64});
  int x = b.fake_quantize(hidden, 0.03f, 125);
  auto heads = [&](std::vector<int64_t> order) {
    return b.transpose(b.node("Reshape", {quantized_linear(b, r, x, 64, 64, 0.4f), split}), std::move(order));
  };
  int q = heads({0, 2, 1, 3}), k = heads({0, 2, 3, 1}), v = heads({0, 2, 1, 3});
  int p = b.node("Softmax", {b.node("Add", {b.node("MatMul", {q, k}), mask})});
  p = b.node("Where", {b.node("IsNaN", {p}), b.scalar(0.f), p});
  int context = b.node("Reshape", {b.transpose(b.node("MatMul", {p, v}), {0, 2, 1, 3}), join});
  int out = quantized_linear(b, r, b.fake_quantize(context, 0.02f, 120), 64, 64, 0.4f);
  b.output(out);
  CHECK_SAME(claim(b.graph).parts.size(), 1u);
  Array none = padding(2, 20);
  for (size_t i = 20; i < 40; ++i) none.data[i] = -INFINITY;
  std::map<int, Array> known = {{hidden, tokens(r, 2, 20, 64)}, {mask, none}};
  Array got = run_engine(b.graph, known, kernels, 2).at(out);
  compare(got, Reference(b.graph).run(known).at(out), 0.1, 0.004);
}

// Heads whose features do not fill dwords.
void narrow_heads(const Kernels* kernels, int heads) {
  Builder b;
  Numbers r(3);
  int hidden = b.input("hidden");
  int x = encoder_layer(b, r, hidden, -1, 12, heads, 16, 0.6f);
  b.output(x);
  CHECK_SAME(claim(b.graph).parts.size(), 1u);
  std::map<int, Array> known = {{hidden, tokens(r, 2, 21, 12)}};
  compare(run_engine(b.graph, known, kernels, 2).at(x), Reference(b.graph).run(known).at(x), 0.2, 0.002);
}

}  // namespace

int main() {
  KernelSet set = available_kernels();
  std::vector<const Kernels*> tables(set.tables, set.tables + set.count);
  for (const Kernels* k : emulated_amx_tables()) tables.push_back(k);
  for (const Kernels* k : tables) {
    std::printf("%s\n", k->name);
    for (int length : {1, 3, 16, 17, 63, 64, 65, 130}) layers(k, 1, 1, length, 2, false);
    for (int batch : {2, 3, 5}) layers(k, 1, batch, 21, 2, true);
    layers(k, 2, 9, 70, 2, true);
    layers(k, 1, 16, 33, 1, true);
    for (int length : {1, 3, 16, 17, 65, 130}) layers(k, 1, 1, length, 2, false, true);
    layers(k, 2, 9, 70, 2, true, true);
    for (int batch : {1, 5, 70}) classifier(k, batch == 1 ? 1 : 2, batch, batch == 70 ? 3 : 40, 2, {0, false, Head::kNothing, false, true}, false);
    classifier(k, 1, 2, 9, 2, {4, false, Head::kHidden, false, true}, true);
    for (int length : {1, 17, 64, 130}) classifier(k, 1, 1, length, 2, {}, false);
    for (int batch : {2, 3, 17, 70}) classifier(k, 2, batch, 21, 2, {0, batch == 2}, false);
    classifier(k, 1, 70, 3, 3, {-1}, false);
    classifier(k, 2, 3, 70, 2, {-1, true}, true);
    classifier(k, 1, 2, 9, 2, {4}, true);
    classifier(k, 1, 3, 20, 2, {0, false, Head::kHidden}, false);
    classifier(k, 1, 3, 20, 2, {0, true, Head::kOtherToken}, false);
    classifier(k, 1, 3, 20, 2, {0, false, Head::kNothing, true}, false);
    for (int batch : {1, 3, 20}) {
      token_of_a_product(k, batch, batch == 3 ? 70 : 9, false);
      token_of_a_product(k, batch, batch == 3 ? 70 : 9, true);
    }
    token_beyond_the_sequence(k);
    for (int length : {7, 40}) foreign_layer(k, 2, length);
    sequence_without_keys(k);
    for (int heads : {1, 2, 4, 6, 12}) narrow_heads(k, heads);
  }
  return check::report("encoder");
}
