// Sparse INT8 product: every kept 4-block is one dword, broadcast and multiplied into four
// activations of each token of the panel, which are one dword too.
//
// The accumulators of a row, 64 tokens x int32, stay in registers while the row's blocks of one
// chunk pass; the chunk of activations (256 bytes a block) stays in the first-level cache while the
// rows pass. What happens to a block is the instruction set's: dot_<isa>.h, included before this,
// defines add_blocks<V>(run, sum) and says what binds it.
#pragma once

namespace obert {
namespace {

template <int V>
void multiply_int8_vectors(const SparseInt8& w, const uint8_t* x, int row_begin, int row_end, int32_t* acc) {
  for (int c = 0; c < w.chunks; ++c) {
    Run run;
    run.chunk = reinterpret_cast<const int32_t*>(x) + static_cast<size_t>(c) * w.chunk_blocks * kPanel;
    const size_t at = static_cast<size_t>(c) * w.rows;
    for (int r = row_begin; r < row_end; ++r) {
      const uint32_t begin = w.start[at + r];
      run.count = static_cast<int>(w.start[at + r + 1] - begin);
      run.pairs = w.pairs ? w.pairs[at + r] : 0;
      run.index = w.index + begin;
      run.value = w.value + static_cast<size_t>(begin) * kBlock;
      int32_t* out = acc + static_cast<size_t>(r - row_begin) * kPanel;
      I32 sum[V];
      for (int v = 0; v < V; ++v) sum[v] = c ? load(out + v * kLanes) : set(0);
      add_blocks<V>(run, sum);
      for (int v = 0; v < V; ++v) store(out + v * kLanes, sum[v]);
    }
  }
}

void multiply_int8(const SparseInt8& w, const uint8_t* x, int groups, int row_begin, int row_end,
                   int32_t* acc) {
  constexpr int kVectors = kGroup / kLanes;
  switch (groups) {
    case 1:
      return multiply_int8_vectors<kVectors>(w, x, row_begin, row_end, acc);
    case 2:
      return multiply_int8_vectors<2 * kVectors>(w, x, row_begin, row_end, acc);
    case 3:
      return multiply_int8_vectors<3 * kVectors>(w, x, row_begin, row_end, acc);
    default:
      return multiply_int8_vectors<4 * kVectors>(w, x, row_begin, row_end, acc);
  }
}

}  // namespace
}  // namespace obert
