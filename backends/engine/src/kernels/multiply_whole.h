// INT8 product of rows that keep all blocks of a chunk, some rows at once. Include after dot_<isa>.h, which says how many
// (kWholeRows, 0: none) and how a block is multiplied (dot4).
//
// A block of activations is loaded once for all of these rows, and a row's weights lie in order: no index, and fewer
// loads than multiplications, which then are what binds.
#pragma once
#include <cstring>

#include "prefetch.h"

namespace obert {
namespace {

// Sums of M rows, as nested structs: an array this large GCC would keep up to date in memory.
template <class Vector, int M, int V>
struct RowSums {
  Vector sum[V];
  RowSums<Vector, M - 1, V> rest;

  OBERT_INLINE void clear() {
    for (int v = 0; v < V; ++v) sum[v] = set(int32_t{0});
    rest.clear();
  }
  // `weights` of the first row; those of the next lie `stride` bytes on.
  OBERT_INLINE void add(const int8_t* weights, size_t stride, const Vector (&x)[V]) {
    int32_t block;
    std::memcpy(&block, weights, sizeof block);
    const Vector w = set(block);
    for (int v = 0; v < V; ++v) sum[v] = dot4(sum[v], x[v], w);
    rest.add(weights + stride, stride, x);
  }
  // The sums of the first row are at rows[0].
  OBERT_INLINE void write(int32_t* const* rows, bool first) const {
    int32_t* to = rows[0];
    for (int v = 0; v < V; ++v) store(to + v * kLanes, first ? sum[v] : obert::add(sum[v], load(to + v * kLanes)));
    rest.write(rows + 1, first);
  }
};

template <class Vector, int V>
struct RowSums<Vector, 0, V> {
  OBERT_INLINE void clear() {}
  OBERT_INLINE void add(const int8_t*, size_t, const Vector (&)[V]) {}
  OBERT_INLINE void write(int32_t* const*, bool) const {}
};

// M rows of `blocks` blocks each, one after another at `weights`, by a chunk of activations; added to what is
// at `rows`, but for the `first` chunk. Inlined, it would leave the loop over sparse rows too few registers.
template <class Vector, int M, int V>
__attribute__((noinline)) void multiply_whole(const int8_t* weights, const int32_t* chunk, size_t blocks, bool first, int32_t* const (&rows)[M]) {
  RowSums<Vector, M, V> sums;
  sums.clear();
  const size_t stride = blocks * kBlock;
  prefetch<3>(weights, M * stride, M * stride);   // the rows after these
  for (size_t b = 0; b < blocks; ++b, weights += kBlock, chunk += kPanel) {
    Vector x[V];
    for (int v = 0; v < V; ++v) x[v] = load(chunk + v * kLanes);
    sums.add(weights, stride, x);
  }
  sums.write(rows, first);
}

}  // namespace
}  // namespace obert
