// Attention of one head over one sequence, queries in lanes. Include after finish.h.
//
// Both products are the same tile: rows of `a` are broadcast element by element against vectors of
// `b`, so that no shuffle and no horizontal sum occurs, and softmax reduces along memory.
//   scores [keys][queries]     a = k [d][keys],    b = q [d][queries]
//   y      [d][queries]        a = v [keys][d],    b = p [keys][queries]
// A tile of kTile x 2 vectors keeps the multiply pipes busy (2 loads and kTile broadcasts for
// 2 kTile multiplications) and fits the registers. Queries go in blocks of 2 kLanes; their scores
// over all keys stay in the first- or second-level cache.
//
// Where only quantised results are asked for and `integers` allows it, both products run on 16-bit integers (see
// attention_numbers.h for the error); inputs that do not suit them, NaN among them, take floats.
#pragma once
#include "attention_layout.h"
#include "attention_numbers.h"

namespace obert {
namespace {

// Rows of accumulators as nested structs: an array this large GCC would keep up to date in memory.
template <class Element, int M>
struct Rows {
  using Vector = decltype(zero_like(Element()));
  Vector left, right;
  Rows<Element, M - 1> rest;

  OBERT_INLINE void clear() {
    left = right = zero_like(Element());
    rest.clear();
  }
  OBERT_INLINE void add(const Element* a, Vector b0, Vector b1) {
    const Vector w = set(*a);
    left = multiply_add(left, w, b0);
    right = multiply_add(right, w, b1);
    rest.add(a + 1, b0, b1);
  }
  template <class Put>
  OBERT_INLINE void for_each(int m, const Put& put) const {
    put(m, 0, left);
    put(m, 1, right);
    rest.for_each(m + 1, put);
  }
};

template <class Element>
struct Rows<Element, 0> {
  using Vector = decltype(zero_like(Element()));
  OBERT_INLINE void clear() {}
  OBERT_INLINE void add(const Element*, Vector, Vector) {}
  template <class Put>
  OBERT_INLINE void for_each(int, const Put&) const {}
};

template <class Element, int M>
struct Tile {
  // Calls put(m, i, sum) with vector i of row m of the product.
  template <class Put>
  static void multiply(const Element* a, size_t stride, const Element* b, int depth, const Put& put) {
    Rows<Element, M> rows;
    rows.clear();
    for (int i = 0; i < depth; ++i, a += stride, b += kQueries) rows.add(a, load(b), load(b + kLanes));
    rows.for_each(0, put);
  }
};

// Calls run(tile, begin) for tiles that cover 0 .. count, a multiple of kTileStep.
template <class Element, class Run>
inline void for_tiles(int count, const Run& run) {
  int i = 0;
  for (; i + kTile <= count; i += kTile) run(Tile<Element, kTile>(), i);
  if constexpr (kTile == 12) {
    if (i + 8 <= count) {
      run(Tile<Element, 8>(), i);
      i += 8;
    }
    if (i + 4 <= count) run(Tile<Element, 4>(), i);
  } else {
    if (i + 4 <= count) {
      run(Tile<Element, 4>(), i);
      i += 4;
    }
    if (i + 2 <= count) run(Tile<Element, 2>(), i);
  }
}

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

template <class Numbers>
void attend(const Attention& a, const Numbers& n) {
  using Element = typename Numbers::Element;
  const AttentionScratch s(a.length, a.head_dim);
  Element* memory = static_cast<Element*>(a.scratch);
  Element *k = memory + s.k, *v = memory + s.v, *q = memory + s.q;
  float* floats = static_cast<float*>(a.scratch);
  float *scores = floats + s.scores, *y = floats + s.y, *mask = floats + s.mask;
  const int keys = padded_to(a.length, kTileStep), features = padded_to(a.head_dim, kTileStep);
  constexpr int kPer = Numbers::kPerElement;

  put_features(n, a.k, a.k_width, a.k_column, a.head_dim, a.first, a.length, keys, n.k, k, s.k_stride);
  transpose_values(a, n, s.v_stride, v);

  for (int query = a.query_begin; query < a.query_end; query += kQueries) {
    const int count = least(kQueries, a.query_end - query);
    put_features(n, a.q, a.q_width, a.q_column, a.head_dim, a.first + static_cast<size_t>(query), count,
                 kQueries, n.q, q, kQueries);
    const bool each = a.mask && a.mask_stride;
    if (each) transpose_mask(a, query, mask);

    const F32 scale = set(a.scale / n.q / n.k);
    // Rounding comes between scale and mask: a pass of its own, to leave the common case its registers.
    const bool round_scores = a.scores.scale != 0.f;
    const bool each_now = each && !round_scores, row_now = a.mask && !each && !round_scores;
    F32 top[2] = {set(-__builtin_inff()), set(-__builtin_inff())};
    for_tiles<Element>(keys, [&](auto tile, int begin) {
      tile.multiply(k + begin, s.k_stride, q, (a.head_dim + kPer - 1) / kPer, [&](int m, int i, auto sum) {
        if (begin + m >= a.length) return;
        F32 x = mul(as_floats(sum), scale);
        if (each_now) x = add(x, load(mask + static_cast<size_t>(begin + m) * kQueries + i * kLanes));
        else if (row_now) x = add(x, set(a.mask[begin + m]));
        top[i] = max(top[i], x);
        store(scores + static_cast<size_t>(begin + m) * kQueries + i * kLanes, x);
      });
    });

    if (round_scores)
      for (int i = 0; i < 2; ++i) top[i] = round_scores_of(a, scores + i * kLanes, each ? mask + i * kLanes : nullptr);

    F32 total[2] = {set(0.f), set(0.f)};
    for (int key = 0; key < a.length; ++key) {
      for (int i = 0; i < 2; ++i) {
        float* at = scores + static_cast<size_t>(key) * kQueries + i * kLanes;
        const F32 p = exp_of_negative(sub(load(at), top[i]));
        total[i] = add(total[i], p);
        store(at, p);
      }
    }

    F32 share[2] = {set(1.f), set(1.f)};
    for (int i = 0; i < 2; ++i) {
      if (a.probabilities.scale != 0.f || (a.nan_to_zero && kPer == 1)) {
        round_weights(a, scores + i * kLanes, total[i]);
        continue;
      }
      share[i] = finish_weights(n, scores + i * kLanes, a.length, total[i]);
      // Integer sums are finite: a share of 0 makes 0 of them. The second operand where the first is NaN.
      if (a.nan_to_zero) share[i] = max(share[i], set(0.f));
    }
    const Element* weights = static_cast<const Element*>(static_cast<const void*>(scores));
    for_tiles<Element>(features, [&](auto tile, int begin) {
      tile.multiply(v + begin, s.v_stride, weights, (a.length + kPer - 1) / kPer,
                    [&](int m, int i, auto sum) {
                      store(y + (begin + m) * kQueries + i * kLanes, mul(as_floats(sum), share[i]));
                    });
    });
    put_queries(a, y, query);
  }
}

void attention(const Attention& a) {
  Fixed fixed;
  if (choose_fixed(a, fixed)) attend(a, fixed);
  else attend(a, Floats());
}

size_t attention_scratch(int length, int head_dim) {
  return AttentionScratch(length, head_dim).floats * sizeof(float);
}

}  // namespace
}  // namespace obert
