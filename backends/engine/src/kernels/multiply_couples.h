// Rows of a sparse INT8 matrix where bytes are multiplied into int16 that saturate: couples of blocks, then single ones
// (SparseInt8 says which). dot_avx2.h, included before this, defines products, add_products and widen.
//
// A row of a pruned matrix has few blocks of a chunk, so that what is done once a row counts as much as what is done for a
// block: nothing here is looked up twice, and what a row has is read where the row before ended.
#pragma once

namespace obert {
namespace {

static_assert(kPacking.saturates && kPacking.fill, "rows come in couples and in order");

// Holds the place of an instruction among others so held: compilers sort them by the processor they have in mind.
OBERT_INLINE void in_turn(I32& v) { __asm__ volatile("" : "+x"(v)); }

OBERT_INLINE I32 weights_at(const int8_t* value) {
  int32_t w;
  std::memcpy(&w, value, sizeof w);
  return set(w);
}

// Two blocks, whose activations are x and y, into the sums. Every vector goes through load, two multiplications, addition,
// widening and addition: here each of these works on another vector, so that none waits for the one before. In the order
// of vectors, with the same instructions, Zen 3 takes 6% longer.
template <int V>
OBERT_INLINE void add_couple(I32 (&sum)[V], const int32_t* x, const int32_t* y, I32 w, I32 u) {
  constexpr int kWiden = 2, kAdd = 3;   // how many vectors behind
  I32 a[V], b[V];
  in_turn(a[0] = load(x));
  in_turn(b[0] = load(y));
#pragma GCC unroll 16
  for (int v = 0; v < V + kAdd; ++v) {
    if (v < V) {
      in_turn(a[v] = products(a[v], w));
      in_turn(b[v] = products(b[v], u));
    }
    if (v >= kWiden && v - kWiden < V) in_turn(a[v - kWiden] = widen(a[v - kWiden]));
    if (v >= kAdd) in_turn(sum[v - kAdd] = add(sum[v - kAdd], a[v - kAdd]));
    if (v + 1 < V) in_turn(a[v + 1] = load(x + (v + 1) * kLanes));
    if (v < V) in_turn(a[v] = add_products(a[v], b[v]));
    if (v + 1 < V) in_turn(b[v + 1] = load(y + (v + 1) * kLanes));
  }
}

template <int V>
OBERT_INLINE void add_single(I32 (&sum)[V], const int32_t* x, I32 w) {
  for (int v = 0; v < V; ++v) sum[v] = add(sum[v], widen(products(load(x + v * kLanes), w)));
}

// `w` is a copy: of what its address is known the compiler would have to read anew after every store to the sums.
template <int V>
void multiply_rows(const SparseInt8 w, const uint8_t* x, int row_begin, int row_end, int32_t* acc) {
  for (int c = 0; c < w.chunks; ++c) {
    const auto* chunk = reinterpret_cast<const int32_t*>(x) + static_cast<size_t>(c) * w.chunk_blocks * kPanel;
    const size_t at = static_cast<size_t>(c) * w.rows;
    const RowBlocks* rows = w.row_blocks + at;
    const uint8_t* order = w.order + at;
    const uint8_t* index = w.index + w.start[at + row_begin];
    const int8_t* value = w.value + static_cast<size_t>(w.start[at + row_begin]) * kBlock;
    const auto activations = [&](int i) { return chunk + static_cast<size_t>(index[i]) * kPanel; };
    for (int window = row_begin; window < row_end; window += kRowWindow) {
      int32_t* sums = acc + static_cast<size_t>(window - row_begin) * kPanel;
      const int window_end = window + kRowWindow < row_end ? window + kRowWindow : row_end;
      for (int p = window; p < window_end; ++p) {
        int32_t* out = sums + static_cast<size_t>(order[p]) * kPanel;
        I32 sum[V];
        for (int v = 0; v < V; ++v) sum[v] = c ? load(out + v * kLanes) : set(0);
        const RowBlocks row = rows[p];
        const uint8_t* couples_end = index + size_t{2} * row.couples;
        for (; index != couples_end; index += 2, value += 2 * kBlock)
          add_couple<V>(sum, activations(0), activations(1), weights_at(value), weights_at(value + kBlock));
        for (int i = row.singles; i; --i, ++index, value += kBlock) add_single<V>(sum, activations(0), weights_at(value));
        for (int v = 0; v < V; ++v) store(out + v * kLanes, sum[v]);
      }
    }
  }
}

}  // namespace
}  // namespace obert
