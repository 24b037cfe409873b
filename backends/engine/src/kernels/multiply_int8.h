// Sparse INT8 product: every kept 4-block is one dword, broadcast and multiplied into four
// activations of each token of the panel, which are one dword too.
//
// The accumulators of a row, 64 tokens x int32, stay in registers while the row's blocks of one
// chunk pass; the chunk of activations (256 bytes a block) stays in the first-level cache while the
// rows pass. How rows pass is the instruction set's: multiply_rows.h or multiply_couples.h, included
// before this, defines multiply_rows<V>(w, x, row_begin, row_end, acc) for V vectors of tokens.
#pragma once
#include "kernels.h"

namespace obert {
namespace {

void multiply_int8(const SparseInt8& w, const uint8_t* x, int groups, int row_begin, int row_end,
                   int32_t* acc) {
  constexpr int kVectors = kGroup / kLanes;
  switch (groups) {
    case 1:
      return multiply_rows<kVectors>(w, x, row_begin, row_end, acc);
    case 2:
      return multiply_rows<2 * kVectors>(w, x, row_begin, row_end, acc);
    case 3:
      return multiply_rows<3 * kVectors>(w, x, row_begin, row_end, acc);
    default:
      return multiply_rows<4 * kVectors>(w, x, row_begin, row_end, acc);
  }
}

}  // namespace
}  // namespace obert
