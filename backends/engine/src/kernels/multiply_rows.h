// Rows of a sparse INT8 matrix, one block after another, for instruction sets that multiply and add blocks at once.
// dot_<isa>.h, included before this, defines add_blocks<V>(run, sum) and says what binds it. Rows of dense matrices: see
// multiply_whole.h.
#pragma once
#include "multiply_whole.h"
#include "prefetch.h"
#include "row_order.h"

namespace obert {
namespace {

// How far ahead weights are asked for, four lines a row of a chunk, what it takes at 80% zeros.
constexpr size_t kBlocksAhead = 512;

// Whether the next `count` rows keep every block of the chunk.
inline bool all_whole(const uint8_t* whole, int count) {
  for (int i = 0; i < count; ++i)
    if (!whole[i]) return false;
  return true;
}

// Rows of a chunk follow one another, so that what one has is read where the one before ended. `w` is a copy: of what its
// address is known the compiler would have to read anew after every store to the sums.
template <int V>
void multiply_rows(const SparseInt8 w, const uint8_t* x, int row_begin, int row_end, int32_t* acc) {
  for (int c = 0; c < w.chunks; ++c) {
    const size_t at = static_cast<size_t>(c) * w.rows;
    const uint32_t* const start = w.start + at;
    const auto sums_of = [&](int place) {
      return acc + static_cast<size_t>(row_at(w.order, at, place) - row_begin) * kPanel;
    };
    Run run = {reinterpret_cast<const int32_t*>(x) + static_cast<size_t>(c) * w.chunk_blocks * kPanel, w.index + start[row_begin],
               w.value + static_cast<size_t>(start[row_begin]) * kBlock, 0};
    for (int p = row_begin; p < row_end; ++p, run.pass()) {
      run.count = start[p + 1] - start[p];
      if constexpr (kWholeRows > 0) {
        if (w.whole && p + kWholeRows <= row_end && all_whole(w.whole + at + p, kWholeRows)) {
          int32_t* rows[kWholeRows];
          for (int i = 0; i < kWholeRows; ++i) rows[i] = sums_of(p + i);
          multiply_whole<I32, kWholeRows, V>(run.value, run.chunk, run.count, c == 0, rows);
          run.count *= kWholeRows;
          p += kWholeRows - 1;
          continue;
        }
      }
      prefetch<2>(run.value, kBlocksAhead * kBlock, 3 * kPrefetchLine);
      prefetch<2>(run.index, kBlocksAhead, kPrefetchLine);
      int32_t* out = sums_of(p);
      I32 sum[V];
      for (int v = 0; v < V; ++v) sum[v] = c ? load(out + v * kLanes) : set(0);
      add_blocks<V>(run, sum);
      for (int v = 0; v < V; ++v) store(out + v * kLanes, sum[v]);
    }
  }
}

}  // namespace
}  // namespace obert
