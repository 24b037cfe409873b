// Reading constants of a graph: scalars, vectors, and the matrices of products, whichever chain of
// DequantizeLinear and Transpose stands before them.
#pragma once
#include <optional>
#include <vector>

#include "graph.h"
#include "match.h"
#include "ops.h"

namespace obert {

// The only element of a float constant; DequantizeLinear of a constant is evaluated.
std::optional<float> scalar(const Graph& graph, int value);

// A float constant with one dimension, of `count` elements where that is given; DequantizeLinear of
// a constant is evaluated, and so is the sum of a constant and a number.
std::optional<std::vector<float>> vector(const Graph& graph, int value, size_t count = 0);

// An int64 constant.
std::optional<std::vector<int64_t>> integers(const Graph& graph, int value);

// The axes of a node that has them as an attribute or, since opset 13 or later, as its second input.
std::optional<std::vector<int64_t>> axes(const Graph& graph, const Node& node);

// Scale and zero point of a QuantizeLinear or DequantizeLinear whose tensor has one scale.
std::optional<Quantization> quantization(const Graph& graph, const Node& node);

// Whether a constant has the elements that its shape promises.
bool whole(const Constant& constant);

// A matrix with what it was read through.
struct Matrix {
  Weights weights;
  std::vector<int> nodes;       // of the chain
  std::vector<int> unpacking;   // those of them that put a packed matrix together
  std::string unpacked;         // name of its blocks, see unpacking.h; empty where it is stored whole
};

// The constant matrix behind `value`, [inputs, outputs] or, when `transposed`, [outputs, inputs],
// read through DequantizeLinear and Transpose, stored whole or packed.
// Empty where the chain is another one; `reason` says why.
std::optional<Matrix> matrix(const Graph& graph, int value, bool transposed, const Reshapes& known, std::string& reason);

}  // namespace obert
