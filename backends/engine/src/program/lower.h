// From matched operations to steps: products take up the bias, activation, residual and quantisation
// that follow them, products of one input become one, and buffers share memory when their lives
// allow it.
#pragma once
#include "../graph/match.h"
#include "program.h"

namespace obert {

// Inputs and outputs of the part: values of the graph, in the order ONNX Runtime passes them.
struct Signature {
  std::vector<int> inputs;
  std::vector<int> outputs;
};

// Throws std::runtime_error for what cannot be lowered, which a graph that `claim` chose never is.
Program lower(const Graph& graph, const Match& match, const Signature& signature, const Kernels* kernels);

}  // namespace obert
