// Recognises what is done to gathered rows.
#pragma once
#include <vector>

#include "rows.h"

namespace obert {

// The term that node `n` makes of terms, added to `rows`; -1 when it makes none. `term_of` holds the
// term of each value of the graph, -1 for the others.
int match_rows(const Graph& graph, int n, const std::vector<int>& term_of, Rows& rows);

}  // namespace obert
