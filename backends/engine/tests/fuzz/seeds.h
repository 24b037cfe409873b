// Graphs as exporters write them, small, for the fuzz target to damage.
#pragma once
#include <string>
#include <vector>

#include "../core/builder.h"

namespace obert::testing {

inline Node with(const char* name, int64_t value) {
  Node n;
  n.ints[name] = value;
  return n;
}

inline void masked_encoder(Builder& b, Numbers& r) {
  int hidden = b.input("hidden"), mask = b.input("mask");
  b.output(encoder_layer(b, r, hidden, mask, 16, 2, 20, 0.5f));
}

// The same with queries, keys and values that are codes, and one that reads a token of it.
inline void codes_encoder(Builder& b, Numbers& r) {
  int hidden = b.input("hidden"), mask = b.input("mask");
  b.output(encoder_layer(b, r, hidden, mask, 16, 2, 20, 0.5f, true));
}
inline void codes_classifier(Builder& b, Numbers& r) {
  int hidden = b.input("hidden"), mask = b.input("mask");
  int first = b.token(encoder_layer(b, r, hidden, mask, 16, 2, 20, 0.5f, true), 0, r.below(2) == 0);
  b.output(b.node("Tanh", {quantized_linear(b, r, b.fake_quantize(first, 0.05f, 120), 16, 12, 0.5f)}));
}

// A layer of which one token is read, and a head on it.
inline void classifier(Builder& b, Numbers& r) {
  int hidden = b.input("hidden"), mask = b.input("mask");
  int first = b.token(encoder_layer(b, r, hidden, mask, 16, 2, 20, 0.5f), 0, r.below(2) == 0);
  b.output(b.node("Tanh", {quantized_linear(b, r, b.fake_quantize(first, 0.05f, 120), 16, 12, 0.5f)}));
}

// From rows of a table to a head, so that padding is dropped.
inline void whole_classifier(Builder& b, Numbers& r) {
  int ids = b.input("ids"), mask = b.input("mask");
  int x = layer_norm(b, r, b.node("Gather", {b.constant({7, 16}, r.normals(7 * 16)), ids}), 16);
  int first = b.token(encoder_layer(b, r, x, mask, 16, 2, 20, 0.5f), 0);
  b.output(b.node("Tanh", {quantized_linear(b, r, b.fake_quantize(first, 0.05f, 120), 16, 12, 0.5f)}));
}

// One product of queries, keys and values, rotary positions, gates of one product: as ModernBERT has it.
inline void rotary_layer(Builder& b, Numbers& r) {
  const int hidden = b.input("hidden");
  const int tables[] = {b.input("cosine", {-1, -1, 8}), b.input("sine", {-1, -1, 8})};
  const int all = quantized_linear(b, r, b.fake_quantize(hidden, 0.05f, 120), 16, 48, 0.5f);
  const int stacked = b.node("Reshape", {all, b.constant({0, 0, 3, -1, 8})});
  const auto heads = [&](int64_t i) {
    const int part = b.node("Slice", {stacked, b.constant({i}), b.constant({i + 1}), b.constant({2})});
    return b.transpose(b.node("Squeeze", {part, b.constant({2})}), {0, 2, 1, 3});
  };
  const auto rotated = [&](int x) {
    int shown[2];
    for (int i : {0, 1}) {
      shown[i] = b.node("Unsqueeze", {tables[i], b.constant({1})});
      b.describe(shown[i], {-1, 1, -1, 8});
    }
    const int first = b.node("Slice", {x, b.constant({0}), b.constant({4}), b.constant({3})});
    const int second = b.node("Slice", {x, b.constant({4}), b.constant({8}), b.constant({-1})});
    const int turned = b.node("Concat", {b.node("Neg", {second}), first}, with("axis", -1));
    return b.node("Add", {b.node("Mul", {x, shown[0]}), b.node("Mul", {turned, shown[1]})});
  };
  const int scores = b.node("MatMul", {rotated(heads(0)), b.transpose(rotated(heads(1)), {0, 1, 3, 2})});
  const int context = b.transpose(b.node("MatMul", {b.node("Softmax", {scores}), heads(2)}), {0, 2, 1, 3});
  const int joined = b.node("Reshape", {context, b.constant({0, 0, 16})});
  const int up = quantized_linear(b, r, b.fake_quantize(joined, 0.02f, 128), 16, 24, 0.5f);
  const std::vector<int> both = b.nodes("Split", {up}, 2, with("axis", -1));
  const int gated = b.node("Mul", {b.node("Gelu", {both[0]}), both[1]});
  b.output(b.node("Add", {hidden, quantized_linear(b, r, b.fake_quantize(gated, 0.02f, 100), 12, 16, 0.5f)}));
}

// Heads that two heads of queries share, norms of heads, rows of a matrix: as Qwen3 and OPT have them.
inline void shared_layer(Builder& b, Numbers& r) {
  const int ids = b.input("ids");
  const int hidden = b.node("Mul", {b.node("Gather", {b.constant({7, 16}, r.normals(7 * 16)), ids}), b.scalar(4.f)});
  const int x = b.fake_quantize(hidden, 0.05f, 120);
  const auto heads = [&](int count, bool normalised) {
    const int part = b.node("Reshape", {quantized_linear(b, r, x, 16, 8 * count, 0.5f), b.constant({0, 0, -1, 8})});
    const int all = b.transpose(part, {0, 2, 1, 3});
    if (!normalised) return all;
    const int root = b.node("Sqrt", {b.node("Add", {b.node("ReduceMean", {b.node("Pow", {all, b.scalar(2.f)}), b.constant({-1})}), b.scalar(1e-4f)})});
    return b.node("Mul", {b.node("Mul", {all, b.node("Reciprocal", {root})}), b.node("Add", {b.constant({8}, r.normals(8)), b.scalar(1.f)})});
  };
  const auto repeated = [&](int one) {
    const int all = b.node("Expand", {b.node("Unsqueeze", {one, b.constant({2})}), b.constant({1, 1, 2, 1, 8})});
    return b.node("Reshape", {all, b.constant({0, 2, -1, 8})});
  };
  const int q = heads(2, true), k = repeated(heads(1, true)), v = repeated(heads(1, false));
  const int p = b.node("Softmax", {b.node("MatMul", {q, b.transpose(k, {0, 1, 3, 2})})}, with("axis", -1));
  const int context = b.node("Reshape", {b.transpose(b.node("MatMul", {p, v}), {0, 2, 1, 3}), b.constant({-1, 16})});
  const int up = quantized_linear(b, r, b.fake_quantize(context, 0.02f, 128), 16, 16, 0.5f);
  const int gated = b.node("Mul", {up, b.node("Sigmoid", {b.node("Mul", {up, b.scalar(1.702f)})})});
  b.output(b.node("Add", {b.node("Reshape", {hidden, b.constant({-1, 16})}), gated}));
}

// Heads of all sequences in one dimension, positions between every two tokens, scores that are filled: as DeBERTa has it.
inline void relative_layer(Builder& b, Numbers& r) {
  constexpr int kWidth = 16, kHeads = 2, kSize = 8, kPositions = 9;
  const int hidden = b.input("hidden"), index = b.input("index", {1, -1, -1}), mask = b.input("mask");
  const int shape = b.node("Shape", {hidden});
  const auto size = [&](int64_t axis) { return b.node("Gather", {shape, b.constant({axis})}); };
  const int all_heads = b.node("Mul", {size(0), b.constant({kHeads})});
  const auto joined_to = [&](int last) { return b.node("Concat", {b.constant({-1}), size(1), last}, with("axis", 0)); };
  const int pairs = b.node("Expand", {index, b.node("Concat", {all_heads, size(1), size(1)}, with("axis", 0))});
  const int x = b.fake_quantize(hidden, 0.05f, 120);
  const auto heads = [&] {
    const int split = b.node("Reshape", {quantized_linear(b, r, x, kWidth, kWidth, 0.5f), b.constant({0, 0, kHeads, -1})});
    return b.node("Reshape", {b.transpose(split, {0, 2, 1, 3}), joined_to(b.constant({kSize}))});
  };
  const int q = heads(), k = heads(), v = heads();
  const auto term = [&](int own) {
    const int table = b.constant({kHeads, kPositions, kSize}, r.normals(kHeads * kPositions * kSize));
    const int tiled = b.node("Tile", {table, b.node("Concat", {size(0), b.constant({1, 1})}, with("axis", 0))});
    const int products = b.node("MatMul", {own, b.transpose(tiled, {0, 2, 1})});
    return b.node("Div", {b.node("GatherElements", {products, pairs}, with("axis", -1)), b.scalar(5.f)});
  };
  int scores = b.node("MatMul", {q, b.node("Div", {b.transpose(k, {0, 2, 1}), b.scalar(5.f)})});
  scores = b.node("Add", {scores, b.node("Add", {term(q), b.transpose(term(k), {0, 2, 1})})});
  const int four = b.node("Reshape", {scores, b.node("Concat", {b.constant({-1, kHeads}), size(1), size(1)}, with("axis", 0))});
  const int filled = b.node("Where", {mask, b.scalar(-3.4028234663852886e38f), four});
  const int p = b.node("Reshape", {b.node("Softmax", {filled}, with("axis", -1)), joined_to(size(1))});
  const int apart = b.node("Concat", {b.constant({-1, kHeads}), size(1), b.constant({kSize})}, with("axis", 0));
  const int context = b.transpose(b.node("Reshape", {b.node("MatMul", {p, v}), apart}), {0, 2, 1, 3});
  const int tokens = b.node("Reshape", {context, b.constant({0, 0, kWidth})});
  b.output(b.node("Add", {hidden, quantized_linear(b, r, b.fake_quantize(tokens, 0.02f, 128), kWidth, kWidth, 0.5f)}));
}

// Rows of nibbles with a scale for each group: Gather, two halves of a byte, joined, scaled, summed
// with positions and normalised.
inline void packed_embedding(Builder& b, Numbers& r) {
  int ids = b.input("ids"), positions = b.input("positions");
  constexpr int kRows = 7, kWidth = 16, kGroups = 4;
  std::vector<uint8_t> bytes(kRows * kWidth / 2);
  for (uint8_t& v : bytes) v = static_cast<uint8_t>(r.below(256));
  int packed = b.node("Gather", {b.constant_uint8({kRows, kWidth / 2}, bytes), ids});
  int wide = b.node("Cast", {packed}, with("to", 1));
  int high = b.node("Floor", {b.node("Mul", {wide, b.scalar(1.f / 16)})});
  int low = b.node("Sub", {wide, b.node("Mul", {high, b.scalar(16.f)})});
  int codes = b.node("Concat", {high, low}, with("axis", -1));
  int groups = b.node("Reshape", {codes, b.constant({0, 0, kGroups, kWidth / kGroups})});
  int scale = b.node("Gather", {b.constant({kRows, kGroups}, r.normals(kRows * kGroups)), ids});
  int scaled = b.node("Mul", {groups, b.node("Unsqueeze", {scale, b.constant({-1})})});
  int words = b.node("Reshape", {scaled, b.constant({0, 0, kWidth})});
  int places = b.node("Gather", {b.constant({9, kWidth}, r.normals(9 * kWidth)), positions});
  b.output(layer_norm(b, r, b.node("Add", {words, places}), kWidth));
}

// A matrix that a chain of standard ops rebuilds from kept blocks and the gaps between them.
inline void packed_matrix(Builder& b, Numbers& r) {
  int x = b.fake_quantize(b.input("hidden"), 0.05f, 128);
  constexpr int kInputs = 16, kOutputs = 12, kKept = 20;
  std::vector<uint8_t> gaps(kKept);
  for (uint8_t& g : gaps) g = static_cast<uint8_t>(1 + r.below(2));
  std::vector<int8_t> values(kKept * 4);
  for (int8_t& v : values) v = static_cast<int8_t>(r.below(255) - 127);
  int steps = b.node("Cast", {b.constant_uint8({kKept, 1}, gaps)}, with("to", 7));
  int places = b.node("CumSum", {steps, b.constant({0})});
  Node fill;
  fill.fills_with_zeros = true;
  int zeros = b.node("ConstantOfShape", {b.constant({kInputs * kOutputs / 4, 4})}, fill);
  int blocks = b.node("ScatterND", {zeros, places, b.constant({kKept, 4}, values)});
  int rows = b.node("Reshape", {blocks, b.constant({kOutputs, kInputs})});
  int columns = b.transpose(rows, {1, 0});
  int matrix = b.node("DequantizeLinear", {columns, b.scalar(0.01f)});
  b.output(b.node("Relu", {b.node("MatMul", {x, matrix})}));
}

// What torch exports around attention: shapes that are computed, GELU and LayerNorm in parts.
inline void in_parts(Builder& b, Numbers& r) {
  int hidden = b.input("hidden");
  constexpr int kWidth = 16;
  int x = b.fake_quantize(hidden, 0.05f, 120);
  int shape = b.node("Shape", {hidden});
  int length = b.node("Unsqueeze", {b.node("Gather", {shape, b.constant({1})}), b.constant({0})});
  int target = b.node("Concat", {b.constant({-1}), length, b.constant({2}), b.constant({8})}, with("axis", 0));
  auto heads = [&](std::vector<int64_t> order) {
    int y = b.node("Reshape", {quantized_linear(b, r, x, kWidth, kWidth, 0.5f), target});
    return b.transpose(y, std::move(order));
  };
  int scores = b.node("MatMul", {heads({0, 2, 1, 3}), heads({0, 2, 3, 1})});
  int p = b.node("Softmax", {b.node("Div", {scores, b.scalar(2.8f)})}, with("axis", -1));
  p = b.node("Where", {b.node("IsNaN", {p}), b.scalar(0.f), p});
  int context = b.transpose(b.node("MatMul", {p, heads({0, 2, 1, 3})}), {0, 2, 1, 3});
  int joined = b.node("Reshape", {context, b.constant({0, 0, kWidth})});
  int up = quantized_linear(b, r, b.fake_quantize(joined, 0.02f, 128), kWidth, kWidth, 0.5f);
  int erf = b.node("Erf", {b.node("Div", {up, b.scalar(1.41421356f)})});
  int gelu = b.node("Mul", {b.node("Mul", {up, b.node("Add", {erf, b.scalar(1.f)})}), b.scalar(0.5f)});
  int sum = b.node("Add", {gelu, hidden});
  Node last;
  last.int_lists["axes"] = {-1};
  int centred = b.node("Sub", {sum, b.node("ReduceMean", {sum}, last)});
  int variance = b.node("ReduceMean", {b.node("Pow", {centred, b.scalar(2.f)})}, last);
  int deviation = b.node("Sqrt", {b.node("Add", {variance, b.scalar(1e-5f)})});
  int scaled = b.node("Mul", {b.node("Div", {centred, deviation}), b.constant({kWidth}, r.normals(kWidth))});
  b.output(b.node("Add", {scaled, b.constant({kWidth}, r.normals(kWidth))}));
}

inline constexpr void (*kSeeds[])(Builder&, Numbers&) = {masked_encoder, codes_encoder,  codes_classifier, classifier,    whole_classifier, rotary_layer,
                                                         relative_layer, shared_layer,   packed_embedding, packed_matrix, in_parts};

}  // namespace obert::testing
