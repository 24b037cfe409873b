// Embedding rows that are gathered and then unpacked or scaled, as an expression over one row.
//
// Gather of a constant table and what is done to its result row by row (casts, factors, nibbles,
// grouped scales) are computed for the rows that a call asks for, one row after another in the
// first-level cache, instead of tensor after tensor.
#pragma once
#include <cstdint>
#include <vector>

#include "../kernels/kernels.h"
#include "graph.h"

namespace obert {

// One term. Terms refer to earlier terms of the same expression.
struct RowTerm {
  RowOp op = RowOp::kGather;
  int a = -1, b = -1;
  const Constant* table = nullptr;   // kGather: [rows, ...], float, int8, uint8 or float16
  float constant = 0.f;              // kConstant
  std::vector<int64_t> tail;         // shape of the result of one row
  int width = 0;                     // its elements; an operand of fewer is repeated in runs
  int64_t count = 0;                 // rows of the tables it reads, the same for all; 0: none
};

// Terms of all expressions of a graph, and which indices the tables are gathered by.
struct Rows {
  std::vector<RowTerm> terms;
  std::vector<int> indices;          // by term: value of the graph, -1 for constants
};

}  // namespace obert
