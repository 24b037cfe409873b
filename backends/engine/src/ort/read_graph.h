// An ONNX Runtime graph as the matcher's graph.
#pragma once
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "../graph/graph.h"
#include "abi.h"

namespace obert::ort {

// The functions of the running ONNX Runtime; filled when the library is registered.
extern Api api;
extern const EpFunctions* ep_functions;

// Throws std::runtime_error with what ONNX Runtime says of a failed call.
void check(Status* status);

struct ReadGraph {
  obert::Graph graph;
  std::vector<const Node*> handles;                  // by node
  std::unordered_map<std::string, int> value_of;     // by name
};

// Constants are borrowed: they live as long as the graph of ONNX Runtime does.
ReadGraph read_graph(const Graph* graph);

// Name of a value.
std::string name_of(const ValueInfo* value);

std::vector<const ValueInfo*> inputs_of(const Node* node);
std::vector<const ValueInfo*> outputs_of(const Node* node);

// Element type, shape and data of a tensor.
struct TensorView {
  int type = 0;
  std::vector<int64_t> shape;
  size_t count = 0;
  void* data = nullptr;
};
TensorView view_of(const Value* value);

}  // namespace obert::ort
