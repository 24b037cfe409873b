// Attention of one head over one sequence, queries in lanes, on vectors. Include after maths.h and quantize.h.
//
// Both products of attention_softmax.h are the same tile: rows of `a` are broadcast element by element against vectors of
// `b`, so that no shuffle and no horizontal sum occurs.
//   scores [keys][queries]     a = k [d][keys],    b = q [d][queries]
//   y      [d][queries]        a = v [keys][d],    b = p [keys][queries]
// Floats of keys and values are multiplied where they lie, in runs that end with a panel; as 16-bit integers they are
// brought into place, and so are floats that lie at odd places.
// A tile of kTile x 2 vectors keeps the multiply pipes busy (2 loads and kTile broadcasts for
// 2 kTile multiplications) and fits the registers. Queries go in blocks of 2 kLanes; their scores
// over all keys stay in the first- or second-level cache.
//
// Where only quantised results are asked for and `integers` allows it, both products run on 16-bit integers (see
// attention_numbers.h for the error), unless inputs do not suit them, NaN among them. Codes: attention_codes.h.
#pragma once
#include "attention_layout.h"
#include "attention_numbers.h"
#include "attention_products.h"
#include "attention_softmax.h"
#include "attention_few.h"
#include "attention_codes.h"

namespace obert {
namespace {

// Values [d][tokens] become [tokens][d].
template <class Numbers>
inline void transpose_values(const Attention& a, const Numbers& n, size_t stride,
                             typename Numbers::Element* v) {
  for (int k = 0; k < a.length; k += kLanes) {
    const size_t t = a.first + static_cast<size_t>(k);
    const int count = least(kLanes, a.length - k);
    const int inside = least(count, kPanel - static_cast<int>(t % kPanel));
    for (int d = 0; d < a.head_dim; d += kLanes) {
      I32 square[kLanes];
      const int width = least(kLanes, a.head_dim - d);
      if (k % kGroup == 0 && k + kGroup < a.length)
        prefetch_tokens(a.v, a.v_width, a.v_column + d, width, t + kGroup, kGroup);
      for (int i = 0; i < kLanes; ++i) {
        if (i >= width) {
          square[i] = set(0);
        } else if (inside == kLanes) {
          square[i] = as_int(load(a.v + panel_offset(t, a.v_width, a.v_column + d + i)));
        } else {
          float row[kLanes] = {};
          copy_tokens(a.v, a.v_width, a.v_column + d + i, t, count, row);
          square[i] = as_int(load(row));
        }
      }
      transpose(square);
      // Lanes past `width` are zero and reach at most into the gap behind the row.
      put_values(n, square, count, k, stride, v + d);
    }
  }
}

// The two products on vectors of floats or of 16-bit integers.
template <class Numbers>
class VectorProducts {
 public:
  static constexpr bool sums_keep_nan = Numbers::kPerElement == 1, rounds_weights = false;
  static constexpr float value_scale = 1.f;
  float *scores, *mask, *y;
  float scale;  // from a product to a score

  VectorProducts(const Attention& a, const Numbers& n)
      : scale(a.scale / n.q / n.k), a_(a), n_(n), s_(a.length, a.head_dim),
        keys_(padded_to(a.length, kTileStep)), features_(padded_to(a.head_dim, kTileStep)), in_place_(in_place(n, a)) {
    Element* memory = static_cast<Element*>(a.scratch);
    k_ = memory + s_.k, v_ = memory + s_.v, q_ = memory + s_.q;
    float* floats = static_cast<float*>(a.scratch);
    scores = floats + s_.scores, mask = floats + s_.mask, y = floats + s_.y;
  }

  void put_keys_and_values() {
    prefetch_tokens(a_.v, a_.v_width, a_.v_column, a_.head_dim, a_.first, kGroup);
    prefetch_block(a_.query_begin);
    if (in_place_) {
      prefetch_tokens(a_.k, a_.k_width, a_.k_column, a_.head_dim, a_.first, run_from(0));
      return;
    }
    put_features(n_, a_.k, a_.k_width, a_.k_column, a_.head_dim, a_.first, a_.length, keys_, n_.k, k_, s_.k_stride);
    transpose_values(a_, n_, s_.v_stride, v_);
  }
  void put_block(int query, int count) {
    const size_t token = a_.first_query + static_cast<size_t>(query);
    if (query + kQueries < a_.query_end) prefetch_block(query + kQueries);
    block_ = in_place(n_, token, count);
    if (block_.at) return;
    put_features(n_, a_.q, a_.q_width, a_.q_column, a_.head_dim, token, count, kQueries, n_.q, q_, kQueries);
    block_ = {q_, kQueries};
  }
  // Raises `top` to the largest of what put(key, i, product), the score of a vector of queries, gives.
  template <class Put>
  OBERT_INLINE void multiply_keys(F32 (&top)[2], const Put& put) {
    for (int first = 0, count; first < a_.length; first += count) {
      count = run_from(first);
      const auto [k, stride] = keys_from(n_, first);
      for_tiles<Element>(padded_to(count, kTileStep), [&, k = k, stride = stride](auto tile, int begin) {
        tile.multiply(k + begin, stride, block_.at, block_.stride, (a_.head_dim + kPer - 1) / kPer, [&](int m, int i, auto sum) {
          if (begin + m < count) top[i] = max(top[i], put(first + begin + m, i, as_floats(sum)));
        });
      });
    }
  }
  OBERT_INLINE void weigh(const F32 (&top)[2], F32 (&total)[2], bool) { exponentials(scores, a_.length, top, total); }
  // Makes weights of vector i of e^(s - top) and gives the factor that makes averages of their sums.
  F32 finish(int i, F32 total) { return finish_weights(n_, scores + i * kLanes, a_.length, total); }
  OBERT_INLINE void average_values(const F32 (&share)[2]) {
    const Element* weights = static_cast<const Element*>(static_cast<const void*>(scores));
    for_tiles<Element>(features_, [&](auto tile, int begin) {
      Rows<Element, decltype(tile)::kRows> rows;
      rows.clear();
      if (!add_in_place(rows, weights, begin))
        rows.template add_all<1>(v_ + begin, s_.v_stride, weights, kQueries, (a_.length + kPer - 1) / kPer);
      rows.for_each(0, [&](int m, int i, auto sum) {
        store(y + (begin + m) * kQueries + i * kLanes, mul(as_floats(sum), share[i]));
      });
    });
  }

 private:
  using Element = typename Numbers::Element;
  static constexpr int kPer = Numbers::kPerElement;

  OBERT_INLINE void prefetch_block(int query) const {
    prefetch_tokens(a_.q, a_.q_width, a_.q_column, a_.head_dim, a_.first_query + static_cast<size_t>(query), kQueries);
  }
  // Features of a block of queries, kQueries of each, or of keys that lie side by side.
  struct Block {
    const Element* at = nullptr;
    size_t stride = 0;
  };
  // Where they lie, if they lie there in one panel as they are multiplied.
  Block in_place(const Floats&, size_t token, int count) const {
    if (count < kQueries || token % kPanel > kPanel - kQueries) return {};
    return {a_.q + panel_offset(token, a_.q_width, a_.q_column), kPanel};
  }
  Block in_place(const Fixed&, size_t, int) const { return {}; }

  // Whether keys and values are multiplied where they lie: no tile reaches over the end of a panel, or of a head.
  static bool in_place(const Floats&, const Attention& a) {
    return a.first % kTileStep == 0 && a.head_dim % kTileStep == 0;
  }
  static bool in_place(const Fixed&, const Attention&) { return false; }
  // How many keys from `first` on lie side by side.
  int run_from(int first) const {
    if (!in_place_) return a_.length;
    return least(a_.length - first, kPanel - static_cast<int>((a_.first + static_cast<size_t>(first)) % kPanel));
  }
  Block keys_from(const Floats&, int first) const {
    if (!in_place_) return {k_, s_.k_stride};
    return {a_.k + panel_offset(a_.first + static_cast<size_t>(first), a_.k_width, a_.k_column), kPanel};
  }
  Block keys_from(const Fixed&, int) const { return {k_, s_.k_stride}; }
  template <int M>
  OBERT_INLINE bool add_in_place(Rows<float, M>& rows, const float* weights, int feature) const {
    for (int first = 0, count; in_place_ && first < a_.length; first += count) {
      count = run_from(first);
      const float* v = a_.v + panel_offset(a_.first + static_cast<size_t>(first), a_.v_width, a_.v_column + feature);
      rows.template add_all<kPanel>(v, 1, weights + static_cast<size_t>(first) * kQueries, kQueries, count);
    }
    return in_place_;
  }
  template <int M>
  bool add_in_place(const Rows<int32_t, M>&, const int32_t*, int) const {
    return false;
  }

  const Attention& a_;
  const Numbers n_;
  const AttentionScratch s_;
  const int keys_, features_;
  const bool in_place_;
  Element *k_, *v_, *q_;
  Block block_;
};

void attention(const Attention& a) {
  if (a.q_codes) {
    if constexpr (kHasDot2)
      if (!are_few(a) && codes_fit(a)) return attend(a, CodeProducts(a));
    return attention(in_floats(a));
  }
  if (are_few(a)) return attend_few(a);
  if constexpr (kHasDot2) {
    Fixed fixed;
    if (choose_fixed(a, fixed)) return attend(a, VectorProducts<Fixed>(a, fixed));
  }
  attend(a, VectorProducts<Floats>(a, Floats()));
}

size_t attention_scratch(int length, int head_dim) {
  const size_t floats = FloatScratch(length, head_dim).floats, codes = CodeScratch(length, head_dim).floats;
  return (floats > codes ? floats : codes) * sizeof(float);
}

}  // namespace
}  // namespace obert
