// Which row of a sparse matrix comes when: see SparseInt8.
#pragma once
#include "kernels.h"

namespace obert {
namespace {

// The row that a place holds; `order` is of the whole matrix or null, `chunk` where its places of the chunk begin.
inline int row_at(const uint8_t* order, size_t chunk, int place) {
  const unsigned first = static_cast<unsigned>(place) & ~(kRowWindow - 1u);   // in one instruction
  return order ? static_cast<int>(first) + order[chunk + static_cast<size_t>(place)] : place;
}

}  // namespace
}  // namespace obert
