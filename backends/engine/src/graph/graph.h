// What the matcher sees of an ONNX graph: nodes in topological order, values, constants. Knows no
// ONNX Runtime; ort/read_graph.cc fills it, and so do tests and the fuzz target.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace obert {

// ONNX TensorProto.DataType of the types the engine reads.
enum class Type : int { kNone = 0, kFloat = 1, kUInt8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kBool = 9, kFloat16 = 10, kUInt4 = 21 };

// A constant tensor; the bytes belong to whoever filled the graph.
struct Constant {
  Type type = Type::kNone;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  size_t count = 0;

  template <class T>
  const T* as() const { return static_cast<const T*>(data); }
};

struct Value {
  std::string name;
  int producer = -1;               // node, -1: graph input or constant
  std::vector<int> consumers;      // nodes, one entry per use
  bool is_output = false;          // of the graph
  int rank = -1;                   // -1: unknown
  int64_t last = -1;               // its last dimension, -1: unknown
  std::vector<int64_t> shape;      // [rank], -1: unknown
  bool is_constant = false;
  Constant constant;               // when is_constant
};

struct Node {
  std::string op;
  int since = 0;                   // opset version that its definition dates from
  std::vector<int> inputs;         // values, -1: left out
  std::vector<int> outputs;        // values, -1: left out
  std::map<std::string, int64_t> ints;
  std::map<std::string, float> floats;
  std::map<std::string, std::string> strings;
  std::map<std::string, std::vector<int64_t>> int_lists;
  bool fills_with_zeros = false;   // ConstantOfShape

  int64_t integer(const char* name, int64_t otherwise) const {
    auto found = ints.find(name);
    return found == ints.end() ? otherwise : found->second;
  }
  float real(const char* name, float otherwise) const {
    auto found = floats.find(name);
    return found == floats.end() ? otherwise : found->second;
  }
};

struct Graph {
  std::vector<Node> nodes;
  std::vector<Value> values;

  int input(int node, size_t i) const {
    const auto& in = nodes[node].inputs;
    return i < in.size() ? in[i] : -1;
  }
  const Constant* constant(int value) const {
    return value >= 0 && values[value].is_constant ? &values[value].constant : nullptr;
  }
  const Node* producer(int value) const {
    return value >= 0 && values[value].producer >= 0 ? &nodes[values[value].producer] : nullptr;
  }
};

}  // namespace obert
