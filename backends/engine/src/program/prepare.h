// What one run works on: its inputs, checked against each other and against the program, and its outputs.
#pragma once
#include <array>
#include <vector>

#include "program.h"

namespace obert {

struct Mask {
  const float* data = nullptr;
  size_t batch = 0, head = 0, query = 0;   // strides in floats, 0 where one serves all
};

// What all groups of one run share.
struct Run {
  std::vector<Tensor> inputs;
  std::vector<char> read;
  std::vector<float*> outputs;
  std::vector<std::array<Mask, 2>> masks;   // by step
  std::vector<std::vector<float>> spread;   // by step: inputs repeated over the batch
  std::vector<int64_t> leading;          // shape of the tokens
  size_t batch = 1, length = 0;
};

// Throws std::runtime_error where the inputs do not fit together.
Run prepare(const Program& program, Caller& caller);

}  // namespace obert
