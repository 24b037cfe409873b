// Tables of relative positions, as kernels read them.
#pragma once
#include "../graph/ops.h"
#include "program.h"

namespace obert {

// Of the float constant that is the table of `term`; a dimension of 1 may stand before its three.
PositionTable position_table(const Constant& constant, const Relative& term, int heads, int head_dim);

}  // namespace obert
