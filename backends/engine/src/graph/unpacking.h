// Matrices that nodes put together from kept blocks and the gaps between them, the way the pass
// `pack` writes them:
//
//     gaps [stored, 1] -> Cast(int64) -> CumSum ----------.
//     ConstantOfShape [blocks, n] ------------------ ScatterND(values [stored, n]) -> Reshape [r, c]
//
// Gaps may pass a Cast to uint8 and a Reshape that changes nothing, whose shape other constants are
// computed into. ONNX Runtime shows such nodes where it was told not to fold constants.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "graph.h"
#include "match.h"
#include "ops.h"

namespace obert {

// What a whole graph says of a matrix and a part of it may not: how many blocks of zeros there are
// before any is stored. `blocks` is by name of the ScatterND's result.
struct Unpacked {
  PackedMatrix matrix;
  std::string name;          // of the ScatterND's result
  std::vector<int> nodes;    // from the first Cast to the last Reshape
};

// The packed matrix whose last Reshape makes `value`. Empty where it is none: then `reason` says why,
// if it begins like one. Places are checked here: every stored block lies inside of the matrix.
std::optional<Unpacked> unpacked(const Graph& graph, int value, const Reshapes& known, std::string& reason);

// The integers of a small tensor that constants are computed into; nothing where that takes other ops
// than zeros of turns are made by, or has more than 16 elements.
std::optional<std::vector<int64_t>> computed_integers(const Graph& graph, int value);

}  // namespace obert
