// The matcher as claim.cc calls it: again and again over one graph, with ever more nodes barred.
#pragma once
#include <map>
#include <vector>

#include "match.h"

namespace obert {

// Share of the elements of float matrices that are not zero, counted once for each matrix.
class Densities {
 public:
  double of(const Weights& weights);

 private:
  std::map<const void*, double> known_;
};

// One pass over the nodes. `barred` nodes are left alone whatever they look like.
Match match(const Graph& graph, const std::vector<char>& barred, const Reshapes& known, Densities& densities);

}  // namespace obert
