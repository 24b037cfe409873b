// Which ops become one step, and in which order steps run. Knows no buffers.
#pragma once
#include <vector>

#include "../graph/ops.h"
#include "../kernels/kernels.h"

namespace obert {

// One op with everything that was fused into it. Results of fused ops are results of the head.
struct Fused {
  int op = -1;                     // the op it began with
  int last = -1;                   // the op whose float result it has
  Rounding rounding, shift_rounding, out_rounding;
  int shift = -1;                  // op kShift that comes before the activation
  Activation activation = Activation::kNone;
  int residual = -1, factor = -1;  // ops
  int quantize = -1;               // op whose result is a second output
  bool keep_float = true;
  int rounded = -1;                // op kDequantize of `quantize`, whose float result it has instead of its own
  int group = -1;                  // products of one input: the first of them
};

struct Fusion {
  std::vector<Fused> steps;                  // each after what it reads
  std::vector<std::vector<int>> rows_of;     // by op: the kRows that it is a sum of
};

// Of all ops that lead to `exported` ones. Throws std::runtime_error where they have a cycle.
Fusion fuse(const std::vector<Op>& ops, const std::vector<int>& exported);

}  // namespace obert
