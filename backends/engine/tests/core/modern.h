// An encoder layer newer than BERT's, in the forms that exporters give it.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "builder.h"
#include "reference.h"

namespace obert::testing {

inline constexpr int kWidth = 48, kHeads = 3, kSize = 16, kInner = 20;

inline Node along(int64_t axis) {
  Node n;
  n.ints["axis"] = axis;
  return n;
}

// How one exporter writes what another writes otherwise.
struct Written {
  enum Stack { kSlices, kGathers, kSplits, kColumns } stack = kSlices;        // queries, keys and values of one product
  enum Table { kUnsqueezed, kFourDimensions, kConstant, kTwoDimensions } table = kUnsqueezed;
  enum Norm { kLayerNorm, kRmsNorm, kReciprocal, kQuotient, kInverse } norm = kLayerNorm;   // the last three in parts
  enum Ops { kParts, kWhole, kWholeOfTokens } ops = kParts;   // Attention and RotaryEmbedding as ops, of heads or of tokens
  bool halves_by_split = false;      // or by Slice
  bool before_transpose = false;     // heads are rotated as [batch, sequence, heads, size]
  bool rounded = false;              // what the product gives is quantised and dequantised before it is cut
  bool scaled = false;               // queries are scaled before
  bool gelu_in_parts = false;        // by tanh, its third power as Pow or as products
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
    if (form.ops != Written::kParts) {
      const int x = b.input(name, {-1, -1, kSize / 2});
      known[x] = rows({each, length, kSize / 2});
      return x;
    }
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
    int all = quantized_linear(b, r, x, kWidth, 3 * kWidth, 0.5f);
    if (form.rounded) all = b.fake_quantize(all, 0.03f, 130);
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

  // What attention gives, [batch, sequence, kWidth].
  int attended(std::vector<int> three, int mask, int cosine, int sine) {
    const bool tokens = form.ops == Written::kWholeOfTokens;
    for (int& x : three) x = tokens ? b.node("Reshape", {x, b.constant({0, 0, kWidth})}) : b.transpose(x, {0, 2, 1, 3});
    Node heads;
    heads.ints["num_heads"] = kHeads;
    for (int i : {0, 1}) three[i] = b.node("RotaryEmbedding", {three[i], cosine, sine}, heads);
    Node n;
    if (tokens) n.ints["q_num_heads"] = n.ints["kv_num_heads"] = kHeads;
    if (form.scaled) n.floats["scale"] = 0.5f;
    if (mask >= 0) three.push_back(mask);
    const int y = b.node("Attention", three, n);
    return tokens ? y : b.node("Reshape", {b.transpose(y, {0, 2, 1, 3}), b.constant({0, 0, kWidth})});
  }

  // The same in parts.
  int attended_in_parts(std::vector<int> three, int mask, int cosine, int sine) {
    if (form.scaled) three[0] = b.node("Mul", {three[0], b.scalar(0.25f)});
    const auto turn = [&](int x) { return rotated(x, shown(cosine), shown(sine)); };
    const auto in_heads = [&](int x) { return b.transpose(x, {0, 2, 1, 3}); };
    int q, k;
    if (form.before_transpose) q = in_heads(turn(three[0])), k = in_heads(turn(three[1]));
    else q = turn(in_heads(three[0])), k = turn(in_heads(three[1]));
    int scores = b.node("MatMul", {q, b.transpose(k, {0, 1, 3, 2})});
    if (!form.scaled) scores = b.node("Mul", {scores, b.scalar(0.25f)});
    if (mask >= 0) scores = b.node("Add", {scores, mask});
    const int context = b.transpose(b.node("MatMul", {b.node("Softmax", {scores}), in_heads(three[2])}), {0, 2, 1, 3});
    return b.node("Reshape", {context, b.constant({0, 0, kWidth})});
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

  int gelu(int x) {
    if (!form.gelu_in_parts) return b.node("Gelu", {x});
    const int cube = form.scaled ? b.node("Mul", {b.node("Mul", {x, x}), x}) : b.node("Pow", {x, b.scalar(3.f)});
    const int sum = b.node("Add", {x, b.node("Mul", {cube, b.scalar(0.044715f)})});
    const int plus = b.node("Add", {b.node("Tanh", {b.node("Mul", {sum, b.scalar(0.7978845608f)})}), b.scalar(1.f)});
    return b.node("Mul", {b.node("Mul", {x, b.scalar(0.5f)}), plus});
  }

  int layer(int hidden, int mask, int cosine, int sine) {
    const std::vector<int> three = heads(b.fake_quantize(hidden, 0.03f, 125));
    const int context = form.ops == Written::kParts ? attended_in_parts(three, mask, cosine, sine) : attended(three, mask, cosine, sine);
    const int sum = b.node("Add", {hidden, quantized_linear(b, r, b.fake_quantize(context, 0.02f, 120), kWidth, kWidth, 0.5f)});
    const int x = b.fake_quantize(norm(sum), 0.03f, 125);
    const std::vector<int> both = b.nodes("Split", {quantized_linear(b, r, x, kWidth, 2 * kInner, 0.5f)}, 2, along(-1));
    const int gated = b.node("Mul", {gelu(both[0]), both[1]});
    return b.node("Add", {sum, quantized_linear(b, r, b.fake_quantize(gated, 0.02f, 100), kInner, kWidth, 0.5f)});
  }
};

}  // namespace obert::testing
