// The constant matrices of a product, packed for the kernels.
#pragma once
#include <vector>

#include "../graph/ops.h"
#include "program.h"

namespace obert {

// Outputs begin .. begin + count of a matrix.
struct Outputs {
  const Weights* weights = nullptr;
  int begin = 0, count = 0;
};

// Stacks outputs of several matrices that read one input into one product. `input` is the
// quantisation of the input, null for float: its scale goes into the scales of the rows, its zero
// point into their bias, as sum_i (x_i - z) w_i = sum_i x_i w_i - z sum_i w_i. Packed as `kernels`
// like it.
Product prepare(const std::vector<Outputs>& outputs, const Quantization* input, const Kernels& kernels);

}  // namespace obert
