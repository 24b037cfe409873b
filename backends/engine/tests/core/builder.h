// Graphs by hand, for tests and the fuzz target.
#pragma once
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "../../src/graph/graph.h"

namespace obert::testing {

class Builder {
 public:
  Graph graph;

  int input(const std::string& name) { return value(name); }
  // -1 in `shape`: any.
  int input(const std::string& name, std::vector<int64_t> shape) {
    const int v = value(name);
    describe(v, std::move(shape));
    return v;
  }
  void describe(int v, std::vector<int64_t> shape) {
    graph.values[v].rank = static_cast<int>(shape.size());
    graph.values[v].last = shape.back();
    graph.values[v].shape = std::move(shape);
  }

  int constant(const std::vector<int64_t>& shape, const std::vector<float>& data) {
    floats_.push_back(data);
    return hold(Type::kFloat, shape, floats_.back().data(), data.size());
  }
  int constant(const std::vector<int64_t>& shape, const std::vector<int8_t>& data) {
    bytes_.push_back(data);
    return hold(Type::kInt8, shape, bytes_.back().data(), data.size());
  }
  int constant_uint8(const std::vector<int64_t>& shape, const std::vector<uint8_t>& data) {
    unsigned_.push_back(data);
    return hold(Type::kUInt8, shape, unsigned_.back().data(), data.size());
  }
  int constant(const std::vector<int64_t>& data) {
    longs_.push_back(data);
    return hold(Type::kInt64, {static_cast<int64_t>(data.size())}, longs_.back().data(), data.size());
  }
  int index(int64_t i) {
    longs_.push_back({i});
    return hold(Type::kInt64, {}, longs_.back().data(), 1);
  }
  int scalar(float x) { return constant({}, std::vector<float>{x}); }
  int zero_point(uint8_t z) { return constant_uint8({}, {z}); }

  // Adds a node with one output and returns that.
  int node(const std::string& op, const std::vector<int>& inputs, Node attributes = {}) {
    int index = static_cast<int>(graph.nodes.size());
    attributes.op = op;
    attributes.since = 21;
    attributes.inputs = inputs;
    int out = value(op + "_" + std::to_string(index));
    attributes.outputs = {out};
    for (int v : inputs)
      if (v >= 0) graph.values[v].consumers.push_back(index);
    graph.values[out].producer = index;
    graph.nodes.push_back(std::move(attributes));
    return out;
  }
  // Adds a node with `count` outputs.
  std::vector<int> nodes(const std::string& op, const std::vector<int>& inputs, size_t count, Node attributes = {}) {
    std::vector<int> all = {node(op, inputs, std::move(attributes))};
    Node& made = graph.nodes.back();
    while (all.size() < count) {
      all.push_back(value(op + "_" + std::to_string(graph.nodes.size() - 1) + "_" + std::to_string(all.size())));
      graph.values[all.back()].producer = static_cast<int>(graph.nodes.size()) - 1;
      made.outputs.push_back(all.back());
    }
    return all;
  }
  int transpose(int x, std::vector<int64_t> perm) {
    Node n;
    n.int_lists["perm"] = std::move(perm);
    return node("Transpose", {x}, n);
  }
  // QuantizeLinear and DequantizeLinear.
  int fake_quantize(int x, float scale, uint8_t zero) {
    int s = scalar(scale), z = zero_point(zero);
    return node("DequantizeLinear", {node("QuantizeLinear", {x, s, z}), s, z});
  }
  // One token of each sequence of x [batch, sequence, width]: [batch, width].
  int token(int x, int64_t i, bool by_slice = false) {
    graph.values[x].rank = 3;
    if (by_slice) {
      int part = node("Slice", {x, constant({i}), constant({i == -1 ? INT64_MAX : i + 1}), constant({1})});
      return node("Squeeze", {part, constant({1})});
    }
    Node axis;
    axis.ints["axis"] = 1;
    return node("Gather", {x, index(i)}, axis);
  }
  void output(int value) { graph.values[value].is_output = true; }

 private:
  int value(const std::string& name) {
    Value v;
    v.name = name;
    graph.values.push_back(v);
    return static_cast<int>(graph.values.size()) - 1;
  }
  int hold(Type type, const std::vector<int64_t>& shape, const void* data, size_t count) {
    int v = value("constant_" + std::to_string(graph.values.size()));
    graph.values[v].is_constant = true;
    graph.values[v].constant = {type, shape, data, count};
    return v;
  }

  std::deque<std::vector<float>> floats_;
  std::deque<std::vector<int8_t>> bytes_;
  std::deque<std::vector<uint8_t>> unsigned_;
  std::deque<std::vector<int64_t>> longs_;
};

// Numbers that are the same on every machine.
class Numbers {
 public:
  explicit Numbers(uint32_t seed) : engine_(seed) {}
  float normal() {
    // Sum of twelve uniform numbers: std::normal_distribution differs between libraries.
    float sum = -6.f;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  float uniform() { return static_cast<float>(engine_()) * (1.f / 4294967296.f); }
  int below(int n) { return static_cast<int>(engine_() % static_cast<uint32_t>(n)); }
  std::vector<float> normals(size_t n, float scale = 1.f) {
    std::vector<float> v(n);
    for (float& x : v) x = normal() * scale;
    return v;
  }
  // int8 weights of which `density` of the 4-blocks along the inputs are kept; [inputs, outputs].
  std::vector<int8_t> weights(int inputs, int outputs, float density) {
    std::vector<int8_t> w(static_cast<size_t>(inputs) * outputs, 0);
    for (int o = 0; o < outputs; ++o)
      for (int b = 0; b < (inputs + 3) / 4; ++b) {
        if (uniform() >= density) continue;
        for (int i = b * 4; i < b * 4 + 4 && i < inputs; ++i)
          w[static_cast<size_t>(i) * outputs + o] = static_cast<int8_t>(below(255) - 127);
      }
    return w;
  }

 private:
  std::mt19937 engine_;
};

// A product with an int8 matrix behind DequantizeLinear, and its bias.
inline int quantized_linear(Builder& b, Numbers& r, int x, int inputs, int outputs, float density) {
  int w = b.constant({inputs, outputs}, r.weights(inputs, outputs, density));
  std::vector<float> scale(outputs);
  for (float& s : scale) s = 0.002f + 0.004f * r.uniform();
  Node axis;
  axis.ints["axis"] = 1;
  int dq = b.node("DequantizeLinear", {w, b.constant({outputs}, scale), b.constant({outputs}, std::vector<int8_t>(outputs, 0))}, axis);
  int product = b.node("MatMul", {x, dq});
  return b.node("Add", {product, b.constant({outputs}, r.normals(outputs, 0.1f))});
}

inline int layer_norm(Builder& b, Numbers& r, int x, int width) {
  std::vector<float> gamma = r.normals(width, 0.1f);
  for (float& g : gamma) g += 1.f;
  Node n;
  n.ints["axis"] = -1;
  n.floats["epsilon"] = 1e-12f;
  return b.node("LayerNormalization", {x, b.constant({width}, gamma), b.constant({width}, r.normals(width, 0.1f))}, n);
}

// One BERT layer over `hidden`; `mask` is a value to add to the scores, or -1. `in_codes`: queries, keys and values are
// quantised and dequantised.
inline int encoder_layer(Builder& b, Numbers& r, int hidden, int mask, int width, int heads, int inner, float density,
                         bool in_codes = false) {
  int head_dim = width / heads;
  int split = b.constant({0, 0, heads, head_dim}), join = b.constant({0, 0, width});
  int x = b.fake_quantize(hidden, 0.03f, 125);
  const auto operand = [&](float scale, uint8_t zero) {
    const int y = quantized_linear(b, r, x, width, width, density);
    return b.node("Reshape", {in_codes ? b.fake_quantize(y, scale, zero) : y, split});
  };
  int q = operand(0.02f, 127), k = operand(0.03f, 121), v = operand(0.02371f, 133);   // no multiple of the scale that rounds averages of them
  int scores = b.node("MatMul", {b.transpose(q, {0, 2, 1, 3}), b.transpose(k, {0, 2, 3, 1})});
  scores = b.node("Mul", {scores, b.scalar(0.125f)});
  if (mask >= 0) scores = b.node("Add", {scores, mask});
  int context = b.node("MatMul", {b.node("Softmax", {scores}), b.transpose(v, {0, 2, 1, 3})});
  context = b.node("Reshape", {b.transpose(context, {0, 2, 1, 3}), join});
  int attended = quantized_linear(b, r, b.fake_quantize(context, 0.02f, 120), width, width, density);
  int first = layer_norm(b, r, b.node("Add", {attended, hidden}), width);
  int up = quantized_linear(b, r, b.fake_quantize(first, 0.03f, 125), width, inner, density);
  int act = b.node("Gelu", {up});
  int down = quantized_linear(b, r, b.fake_quantize(act, 0.02f, 10), inner, width, density);
  return layer_norm(b, r, b.node("Add", {down, first}), width);
}

}  // namespace obert::testing
