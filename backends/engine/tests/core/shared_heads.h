// An encoder layer as language models have it, in the forms that exporters give it: heads of keys and values that several
// heads of queries share, queries and keys that are normalised head by head, embeddings times a constant, a feed-forward
// part over the rows of a matrix.
#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include "builder.h"
#include "reference.h"

namespace obert::testing {

struct Shared {
  enum Norm { kNone, kParts, kOp, kCentred } norm = kNone;       // of queries and keys, head by head
  enum Scale { kNotScaled, kByNumber, kByFeature, kQuotient } scale = kNotScaled;   // of what the layer reads
  int group = 2;                      // heads of queries for each head of keys and values
  bool norm_after_transpose = false;
  bool gamma_is_a_sum = false;        // one and a weight
  bool joined = false;                // batch and heads in one dimension
  bool keys_last = false;             // copies of keys are transposed, or keys before
  bool whole = false;                 // attention is one op
  bool matrix = false;                // [batch * sequence, width] behind attention
  bool matrix_before = false;         // and before it
  bool gated = false;                 // x * sigmoid(1.702 x) instead of ReLU
  bool quantized_heads = false;       // what is copied was quantised and dequantised
};

struct SharedHeads {
  static constexpr int kCount = 6, kEach = 8, kWide = kCount * kEach, kHidden = 40, kUp = 20;
  Builder b;
  Numbers r;
  Shared form;
  int batch, length;

  SharedHeads(const Shared& f, int sequences, int tokens) : r(static_cast<uint32_t>(f.group * 10 + tokens)), form(f), batch(sequences), length(tokens) {}

  static Node last() {
    Node n;
    n.ints["axis"] = -1;
    return n;
  }

  int gamma(int width) {
    std::vector<float> all = r.normals(static_cast<size_t>(width), 0.2f);
    if (form.gamma_is_a_sum) return b.node("Add", {b.constant({width}, all), b.scalar(1.f)});
    for (float& x : all) x += 1.f;
    return b.constant({width}, all);
  }

  int norm(int x, int width, Shared::Norm kind) {
    if (kind == Shared::kNone) return x;
    Node n = last();
    n.floats["epsilon"] = 1e-3f;
    if (kind == Shared::kOp) return b.node("RMSNormalization", {x, gamma(width)}, n);
    if (kind == Shared::kCentred) return b.node("LayerNormalization", {x, gamma(width), b.constant({width}, r.normals(static_cast<size_t>(width), 0.1f))}, n);
    const int mean = b.node("ReduceMean", {b.node("Pow", {x, b.scalar(2.f)}), b.constant({-1})});
    const int inverse = b.node("Reciprocal", {b.node("Sqrt", {b.node("Add", {mean, b.scalar(1e-3f)})})});
    return b.node("Mul", {b.node("Mul", {x, inverse}), gamma(width)});
  }

  // [batch, heads, sequence, size]
  int heads(int x, int count, Shared::Norm kind) {
    int y = quantized_linear(b, r, x, kHidden, count * kEach, 0.5f);
    y = b.node("Reshape", {y, form.matrix_before ? b.constant({batch, -1, count, kEach}) : b.constant({0, 0, count, kEach})});
    if (form.norm_after_transpose) return norm(b.transpose(y, {0, 2, 1, 3}), kEach, kind);
    return b.transpose(norm(y, kEach, kind), {0, 2, 1, 3});
  }

  // A copy for each of the heads that share one.
  int repeated(int x) {
    if (form.quantized_heads) x = b.fake_quantize(x, 0.04f, 130);
    const int kept = kCount / form.group;
    const int five = b.node("Unsqueeze", {x, b.constant({2})});
    const int all = b.node("Expand", {five, b.constant({batch, kept, form.group, length, kEach})});
    return b.node("Reshape", {all, form.joined ? b.constant({-1, length, kEach}) : b.constant({batch, kCount, length, kEach})});
  }

  int turned(int x) { return b.transpose(x, form.joined ? std::vector<int64_t>{0, 2, 1} : std::vector<int64_t>{0, 1, 3, 2}); }

  int attended(int x) {
    const int q = heads(x, kCount, form.norm), k = heads(x, kCount / form.group, form.norm), v = heads(x, kCount / form.group, Shared::kNone);
    int context;
    if (form.whole) {
      context = b.node("Attention", {q, k, v});
    } else {
      const int queries = form.joined ? b.node("Reshape", {q, b.constant({-1, length, kEach})}) : q;
      const int scores = b.node("Mul", {b.node("MatMul", {queries, turned(repeated(k))}), b.scalar(0.35f)});
      context = b.node("MatMul", {b.node("Softmax", {scores}, last()), repeated(v)});
      if (form.joined) context = b.node("Reshape", {context, b.constant({batch, kCount, length, kEach})});
    }
    return b.node("Reshape", {b.transpose(context, {0, 2, 1, 3}), form.matrix ? b.constant({-1, kWide}) : b.constant({0, 0, kWide})});
  }

  int scaled(int x) {
    if (form.scale == Shared::kByNumber) return b.node("Mul", {x, b.scalar(1.5f)});
    if (form.scale == Shared::kByFeature) return b.node("Mul", {b.constant({kHidden}, r.normals(kHidden)), x});
    if (form.scale == Shared::kQuotient) return b.node("Div", {x, b.scalar(0.8f)});
    return x;
  }

  int layer(int hidden) {
    const int x = scaled(hidden), normed = norm(x, kHidden, Shared::kCentred);
    const int read = form.matrix_before ? b.node("Reshape", {normed, b.constant({-1, kHidden})}) : normed;
    const int context = attended(b.fake_quantize(read, 0.03f, 125));
    const int out = quantized_linear(b, r, b.fake_quantize(context, 0.02f, 120), kWide, kHidden, 0.5f);
    const int sum = b.node("Add", {form.matrix ? b.node("Reshape", {x, b.constant({-1, kHidden})}) : x, out});
    const int up = quantized_linear(b, r, b.fake_quantize(norm(sum, kHidden, Shared::kOp), 0.03f, 125), kHidden, kUp, 0.5f);
    const int act = form.gated ? b.node("Mul", {up, b.node("Sigmoid", {b.node("Mul", {up, b.scalar(1.702f)})})}) : b.node("Relu", {up});
    const int y = b.node("Add", {sum, quantized_linear(b, r, b.fake_quantize(act, 0.02f, 100), kUp, kHidden, 0.5f)});
    return form.matrix ? b.node("Reshape", {y, b.constant({batch, -1, kHidden})}) : y;
  }

  // Numbers between -1 and 1.
  Array tokens() {
    Array a;
    a.shape = {batch, length, kHidden};
    for (int64_t i = 0; i < Array::count(a.shape); ++i) a.data.push_back(2. * r.uniform() - 1.);
    return a;
  }
};

}  // namespace obert::testing
