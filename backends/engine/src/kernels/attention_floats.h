// Attention of floats on vectors, queries in lanes. Include after attention_products.h and attention_softmax.h.
//
//   scores [keys][queries]     a = k [d][keys],    b = q [d][queries]
//   y      [d][queries]        a = v [keys][d],    b = p [keys][queries]
// Keys and values are multiplied where they lie, in runs that end with a panel; those that lie at odd places are brought
// into place.
#pragma once

namespace obert {
namespace {

class FloatProducts {
 public:
  static constexpr bool sums_keep_nan = true, rounds_weights = false;
  static constexpr float value_scale = 1.f;
  float *scores, *mask, *y;
  float scale;  // from a product to a score

  explicit FloatProducts(const Attention& a)
      : scale(a.scale), a_(a), s_(a.length, a.head_dim), keys_(padded_to(a.length, kTileStep)), features_(padded_to(a.head_dim, kTileStep)),
        in_place_(a.first % kTileStep == 0 && a.head_dim % kTileStep == 0) {
    float* memory = static_cast<float*>(a.scratch);
    k_ = memory + s_.k, v_ = memory + s_.v, q_ = memory + s_.q;
    scores = memory + s_.scores, mask = memory + s_.mask, y = memory + s_.y;
  }

  void put_keys_and_values() {
    prefetch_tokens(a_.v, a_.v_width, a_.v_column, a_.head_dim, a_.first, kGroup);
    prefetch_block(a_.query_begin);
    if (in_place_) {
      prefetch_tokens(a_.k, a_.k_width, a_.k_column, a_.head_dim, a_.first, run_from(0));
      return;
    }
    put_features(a_.k, a_.k_width, a_.k_column, a_.first, a_.length, keys_, k_, s_.k_stride);
    transpose_values();
  }
  void put_block(int query, int count) {
    const size_t token = a_.first_query + static_cast<size_t>(query);
    if (query + kQueries < a_.query_end) prefetch_block(query + kQueries);
    if (count == kQueries && token % kPanel <= kPanel - kQueries) {
      block_ = {a_.q + panel_offset(token, a_.q_width, a_.q_column), kPanel};
      return;
    }
    put_features(a_.q, a_.q_width, a_.q_column, token, count, kQueries, q_, kQueries);
    block_ = {q_, kQueries};
  }
  // Raises `top` to the largest of what put(key, i, product), the score of a vector of queries, gives.
  template <class Put>
  OBERT_INLINE void multiply_keys(F32 (&top)[2], const Put& put) {
    for (int first = 0, count; first < a_.length; first += count) {
      count = run_from(first);
      const auto [k, stride] = keys_from(first);
      for_tiles<float>(padded_to(count, kTileStep), [&, k = k, stride = stride](auto tile, int begin) {
        tile.multiply(k + begin, stride, block_.at, block_.stride, a_.head_dim, [&](int m, int i, F32 sum) {
          if (begin + m < count) top[i] = max(top[i], put(first + begin + m, i, sum));
        });
      });
    }
  }
  OBERT_INLINE void weigh(const F32 (&top)[2], F32 (&total)[2], bool) { exponentials(scores, a_.length, top, total); }
  // The factor that makes averages of the sums of vector i. NaN in `total` comes out again.
  F32 finish(int, F32 total) { return div(set(1.f), total); }
  OBERT_INLINE void average_values(const F32 (&share)[2]) {
    for_tiles<float>(features_, [&](auto tile, int begin) {
      Rows<float, decltype(tile)::kRows> rows;
      rows.clear();
      if (in_place_) add_in_place(rows, begin);
      else rows.template add_all<1>(v_ + begin, s_.v_stride, scores, kQueries, a_.length);
      rows.for_each(0, [&](int m, int i, F32 sum) { store(y + (begin + m) * kQueries + i * kLanes, mul(sum, share[i])); });
    });
  }

 private:
  // Features of a block of queries, kQueries of each, or of keys that lie side by side.
  struct Block {
    const float* at = nullptr;
    size_t stride = 0;
  };

  OBERT_INLINE void prefetch_block(int query) const {
    prefetch_tokens(a_.q, a_.q_width, a_.q_column, a_.head_dim, a_.first_query + static_cast<size_t>(query), kQueries);
  }
  // How many keys from `first` on lie side by side.
  int run_from(int first) const {
    if (!in_place_) return a_.length;
    return least(a_.length - first, kPanel - static_cast<int>((a_.first + static_cast<size_t>(first)) % kPanel));
  }
  Block keys_from(int first) const {
    if (!in_place_) return {k_, s_.k_stride};
    return {a_.k + panel_offset(a_.first + static_cast<size_t>(first), a_.k_width, a_.k_column), kPanel};
  }
  template <int M>
  OBERT_INLINE void add_in_place(Rows<float, M>& rows, int feature) const {
    for (int first = 0, count; first < a_.length; first += count) {
      count = run_from(first);
      const float* v = a_.v + panel_offset(a_.first + static_cast<size_t>(first), a_.v_width, a_.v_column + feature);
      rows.template add_all<kPanel>(v, 1, scores + static_cast<size_t>(first) * kQueries, kQueries, count);
    }
  }

  // [head_dim][stride] of some tokens, with zeros up to `padded`.
  void put_features(const float* x, int width, int column, size_t first, int count, int padded, float* to, size_t stride) const {
    for (int d = 0; d < a_.head_dim; ++d) {
      float* row = to + static_cast<size_t>(d) * stride;
      copy_tokens(x, width, column + d, first, count, row);
      for (int i = count; i < padded; ++i) row[i] = 0.f;
    }
  }

  // Values [d][tokens] become [tokens][d].
  void transpose_values() const {
    for (int k = 0; k < a_.length; k += kLanes) {
      const size_t t = a_.first + static_cast<size_t>(k);
      const int count = least(kLanes, a_.length - k);
      const int inside = least(count, kPanel - static_cast<int>(t % kPanel));
      for (int d = 0; d < a_.head_dim; d += kLanes) {
        I32 square[kLanes];
        const int width = least(kLanes, a_.head_dim - d);
        if (k % kGroup == 0 && k + kGroup < a_.length) prefetch_tokens(a_.v, a_.v_width, a_.v_column + d, width, t + kGroup, kGroup);
        for (int i = 0; i < kLanes; ++i) {
          if (i >= width) {
            square[i] = set(0);
          } else if (inside == kLanes) {
            square[i] = as_int(load(a_.v + panel_offset(t, a_.v_width, a_.v_column + d + i)));
          } else {
            float row[kLanes] = {};
            copy_tokens(a_.v, a_.v_width, a_.v_column + d + i, t, count, row);
            square[i] = as_int(load(row));
          }
        }
        transpose(square);
        // Lanes past `width` are zero and reach at most into the gap behind the row.
        for (int i = 0; i < count; ++i) store(v_ + static_cast<size_t>(k + i) * s_.v_stride + d, as_float(square[i]));
      }
    }
  }

  const Attention& a_;
  const AttentionScratch s_;
  const int keys_, features_;
  const bool in_place_;
  float *k_, *v_, *q_;
  Block block_;
};

}  // namespace
}  // namespace obert
