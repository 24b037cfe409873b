// Computes for one token of each sequence what only that token is read of.
//
// A classifier reads the first token of its last layer. Whatever works on tokens one by one commutes with the
// picking of one, so that of the last layer only keys and values need all tokens: picks move towards the
// inputs until something else reads a tensor too.
#pragma once
#include <vector>

#include "../graph/ops.h"

namespace obert {

struct Narrowed {
  std::vector<Op> ops;
  std::vector<int> place;   // by op before: where its result is now, that of the token where all agree on it
};

// `exported` are ops whose results are handed out. Ops are in topological order, before and after. Nothing
// changes where picks take different tokens.
Narrowed narrow(const std::vector<Op>& ops, const std::vector<int>& exported);

}  // namespace obert
