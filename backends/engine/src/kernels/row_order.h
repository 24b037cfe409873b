// Which row of a sparse matrix comes when: see SparseInt8.
#pragma once
#include "kernels.h"

namespace obert {
namespace {

// The row that a place holds; `order` is of the whole matrix or null, `chunk` where its places of the chunk begin.
inline int row_at(const uint8_t* order, size_t chunk, int place) {
  return order ? place / kRowWindow * kRowWindow + order[chunk + static_cast<size_t>(place)] : place;
}

}  // namespace
}  // namespace obert
