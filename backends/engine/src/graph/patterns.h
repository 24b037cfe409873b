// Functions that exporters write as several nodes. Nothing here knows what the engine holds: each
// finds the nodes around a starting one, or nothing.
#pragma once
#include <optional>
#include <vector>

#include "graph.h"

namespace obert {

constexpr float kGeluSigmoidFactor = 1.702f;

struct Pattern {
  int x = -1;                  // the value that the function is of
  int last = -1;               // the node whose result is the function's
  std::vector<int> nodes;      // all of them
  std::vector<float> gamma, beta;   // LayerNorm
  float epsilon = 0.f;              // LayerNorm
  bool centred = true;              // LayerNorm; false: RMSNorm
  int64_t axis = -1;                // LayerNorm: over which, as the graph counts
  std::vector<int> constants;       // LayerNorm: the values that gamma and beta were read from
  int square = -1;                  // RMSNorm: the node that multiplies x by itself, a product of tensors until it is known what for
};

// x * 0.5 * (1 + erf(x / sqrt(2))), in the orders that exporters write it, around its Erf.
std::optional<Pattern> gelu_around_erf(const Graph& graph, int erf);

// x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) around its Tanh.
std::optional<Pattern> gelu_around_tanh(const Graph& graph, int tanh);

// x * sigmoid(factor * x) around its Sigmoid; without a product with the factor where that is 1.
std::optional<Pattern> swish_around_sigmoid(const Graph& graph, int sigmoid, float factor);

// (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gamma + beta, from its first ReduceMean.
std::optional<Pattern> layer_norm_from_mean(const Graph& graph, int mean);

// x / sqrt(mean(x^2) + epsilon) * gamma around its ReduceMean.
std::optional<Pattern> rms_norm_around_mean(const Graph& graph, int mean);

}  // namespace obert
