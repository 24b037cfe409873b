// Changes to a graph that ONNX Runtime might still load: other wires, attributes, constants, ops,
// types and outputs. Nodes stay in topological order and constants keep the size that their shape
// says, as ONNX Runtime sees to both.
#pragma once
#include <cmath>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "../../src/graph/graph.h"
#include "bytes.h"

namespace obert::testing {

class Damage {
 public:
  Damage(Graph& graph, Bytes& bytes) : g_(graph), in_(bytes) {}

  void run(int times) {
    for (int i = 0; i < times && !g_.nodes.empty(); ++i) once();
    relink();
  }

 private:
  static constexpr int64_t kOdd[] = {0, 1, -1, 2, 3, 4, -2, 7, 16, 64, 1 << 20, int64_t{1} << 32, INT64_MAX, INT64_MIN};
  static constexpr int64_t kSizes[] = {0, 1, 2, 3, 4, 8, 12, 16, 20, 64};
  static constexpr Type kTypes[] = {Type::kFloat, Type::kUInt8, Type::kInt8, Type::kInt32, Type::kInt64, Type::kBool, Type::kFloat16, Type::kUInt4};
  static constexpr const char* kOps[] = {
      "MatMul", "Gemm", "QuantizeLinear", "DequantizeLinear", "Add", "Sub", "Mul", "Div", "Reshape", "Transpose",
      "Softmax", "IsNaN", "Where", "LayerNormalization", "ReduceMean", "Erf", "Sigmoid", "Tanh", "Gelu", "Relu",
      "Swish", "Identity", "Dropout", "Gather", "Cast", "Floor", "Concat", "Unsqueeze", "Squeeze", "Shape", "Slice",
      "Pow", "Sqrt", "CumSum", "ScatterND", "ConstantOfShape", "BitwiseAnd", "BitShift", "NonZero", "Unknown"};
  static constexpr const char* kAttributes[] = {"axis", "transA", "transB", "block_size", "output_dtype", "allowzero",
                                                "to", "start", "end", "keepdims"};

  void once() {
    int n = in_.below(static_cast<int>(g_.nodes.size()));
    Node& node = g_.nodes[n];
    switch (in_.below(12)) {
      case 0: case 1:
        if (!node.inputs.empty()) node.inputs[static_cast<size_t>(in_.below(static_cast<int>(node.inputs.size())))] = earlier(n);
        return;
      case 2: node.inputs.push_back(earlier(n)); return;
      case 3: node.inputs.resize(static_cast<size_t>(in_.below(static_cast<int>(node.inputs.size()) + 1))); return;
      case 4: node.ints[in_.pick(kAttributes)] = in_.pick(kOdd); return;
      case 5: {
        auto& list = node.int_lists[in_.below(2) ? "perm" : "axes"];
        list.clear();
        for (int i = in_.below(6); i > 0; --i) list.push_back(in_.below(8) ? in_.below(4) : in_.pick(kOdd));
        return;
      }
      case 6: case 7: constant(node); return;
      case 8: g_.values[static_cast<size_t>(in_.below(static_cast<int>(g_.values.size())))].is_output = true; return;
      case 9: node.op = in_.pick(kOps); return;
      case 10: outputs(n); return;
      default: {
        Value& v = g_.values[static_cast<size_t>(in_.below(static_cast<int>(g_.values.size())))];
        v.rank = in_.below(6) - 1;
        v.last = v.rank > 0 ? in_.pick(kSizes) : -1;
        node.since = 1 + in_.below(24);
        return;
      }
    }
  }

  // A value that exists before node n runs, or none.
  int earlier(int n) {
    if (in_.below(12) == 0) return -1;
    std::vector<char> later(g_.values.size(), 0);
    for (size_t i = static_cast<size_t>(n); i < g_.nodes.size(); ++i)
      for (int v : g_.nodes[i].outputs)
        if (v >= 0) later[v] = 1;
    std::vector<int> fine;
    for (size_t v = 0; v < later.size(); ++v)
      if (!later[v]) fine.push_back(static_cast<int>(v));
    // Two decisions: graphs have more values than a byte counts.
    size_t at = static_cast<size_t>(in_.below(256)) + 256 * static_cast<size_t>(in_.below(4));
    return fine.empty() ? -1 : fine[at % fine.size()];
  }

  // Another constant for one of the node's inputs.
  void constant(Node& node) {
    if (node.inputs.empty()) return;
    Constant c;
    c.type = in_.pick(kTypes);
    c.count = 1;
    for (int rank = in_.below(4); rank > 0; --rank) c.shape.push_back(in_.pick(kSizes));
    for (int64_t d : c.shape) c.count *= static_cast<size_t>(d);
    data_.emplace_back(c.count + 1);
    for (uint64_t& element : data_.back()) element = number(c.type);
    pack(c, data_.back());
    c.data = c.count ? data_.back().data() : nullptr;
    Value v;
    v.name = "odd_" + std::to_string(g_.values.size());
    v.is_constant = true;
    v.constant = c;
    g_.values.push_back(v);
    node.inputs[static_cast<size_t>(in_.below(static_cast<int>(node.inputs.size())))] = static_cast<int>(g_.values.size()) - 1;
  }

  uint64_t number(Type type) {
    if (in_.below(8) == 0) {
      static const float kFloats[] = {0.f, -1.f, NAN, INFINITY, -INFINITY, 1e-40f, 3e38f, 0.5f};
      float f = in_.pick(kFloats);
      uint32_t bits;
      std::memcpy(&bits, &f, sizeof bits);
      return type == Type::kFloat ? bits : static_cast<uint64_t>(in_.pick(kOdd));
    }
    if (type != Type::kFloat) return static_cast<uint64_t>(in_.below(256));
    float f = static_cast<float>(in_.below(256) - 64) * 0.0625f;
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof bits);
    return bits;
  }

  // From one element a word to elements side by side.
  static void pack(const Constant& c, std::vector<uint64_t>& data) {
    size_t size = c.type == Type::kInt64 ? 8 : c.type == Type::kFloat || c.type == Type::kInt32 ? 4 : c.type == Type::kFloat16 ? 2 : 1;
    auto* bytes = reinterpret_cast<uint8_t*>(data.data());
    for (size_t i = 0; i < c.count; ++i) {
      uint64_t element = data[i];
      std::memcpy(bytes + i * size, &element, size);
    }
  }

  void outputs(int n) {
    auto& list = g_.nodes[n].outputs;
    switch (in_.below(3)) {
      case 0: list.clear(); return;
      case 1:
        if (!list.empty()) list[0] = -1;
        return;
      default: {
        Value v;
        v.name = "more_" + std::to_string(g_.values.size());
        g_.values.push_back(v);
        list.push_back(static_cast<int>(g_.values.size()) - 1);
      }
    }
  }

  void relink() {
    for (Value& v : g_.values) {
      v.producer = -1;
      v.consumers.clear();
    }
    for (size_t n = 0; n < g_.nodes.size(); ++n) {
      for (int v : g_.nodes[n].inputs)
        if (v >= 0) g_.values[v].consumers.push_back(static_cast<int>(n));
      for (int v : g_.nodes[n].outputs)
        if (v >= 0) g_.values[v].producer = static_cast<int>(n);
    }
    // A constant is no output in ONNX Runtime's view of a part, and neither is an input.
    for (Value& v : g_.values)
      if (v.producer < 0) v.is_output = false;
  }

  Graph& g_;
  Bytes& in_;
  static inline thread_local std::deque<std::vector<uint64_t>> data_;

 public:
  // Constants of graphs that are gone.
  static void forget() { data_.clear(); }
};

}  // namespace obert::testing
