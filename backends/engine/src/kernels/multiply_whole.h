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

  // `row(i)` is where the sums of row i are.
  template <class RowAt>
  OBERT_INLINE void read(const RowAt& row, int i, bool zero) {
    const int32_t* from = row(i);
    for (int v = 0; v < V; ++v) sum[v] = zero ? set(int32_t{0}) : load(from + v * kLanes);
    rest.read(row, i + 1, zero);
  }
  // `weights` of the first row; those of the next lie `stride` bytes on.
  OBERT_INLINE void add(const int8_t* weights, size_t stride, const Vector (&x)[V]) {
    int32_t block;
    std::memcpy(&block, weights, sizeof block);
    const Vector w = set(block);
    for (int v = 0; v < V; ++v) sum[v] = dot4(sum[v], x[v], w);
    rest.add(weights + stride, stride, x);
  }
  template <class RowAt>
  OBERT_INLINE void write(const RowAt& row, int i) const {
    int32_t* to = row(i);
    for (int v = 0; v < V; ++v) store(to + v * kLanes, sum[v]);
    rest.write(row, i + 1);
  }
};

template <class Vector, int V>
struct RowSums<Vector, 0, V> {
  template <class RowAt>
  OBERT_INLINE void read(const RowAt&, int, bool) {}
  OBERT_INLINE void add(const int8_t*, size_t, const Vector (&)[V]) {}
  template <class RowAt>
  OBERT_INLINE void write(const RowAt&, int) const {}
};

// M rows of `blocks` blocks each, one after another at `weights`, by a chunk of activations; added to what is in the
// sums unless `zero`.
template <class Vector, int M, int V, class RowAt>
inline void multiply_whole(const int8_t* weights, const int32_t* chunk, int blocks, bool zero, const RowAt& row) {
  RowSums<Vector, M, V> sums;
  sums.read(row, 0, zero);
  const size_t stride = static_cast<size_t>(blocks) * kBlock;
  prefetch<3>(weights, M * stride, M * stride);   // the rows after these
  for (int b = 0; b < blocks; ++b, weights += kBlock, chunk += kPanel) {
    Vector x[V];
    for (int v = 0; v < V; ++v) x[v] = load(chunk + v * kLanes);
    sums.add(weights, stride, x);
  }
  sums.write(row, 0);
}

}  // namespace
}  // namespace obert
