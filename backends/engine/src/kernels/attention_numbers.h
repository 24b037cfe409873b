// The numbers attention.h multiplies: floats, or 16-bit integers two to a dword, which the multiply
// pipes take at twice the rate. Include after attention_layout.h.
//
// Floats in 16 bits, with N = 32700 and Q, K the largest lengths of a query and a key vector, V the largest
// value:
//   q, k   scaled to lengths of at most N, so that |q . k| < 2^30 by Cauchy and Schwarz; rounding
//          moves a score by at most d = scale Q K sqrt(head_dim) / N, about a twentieth of it in practice
//   p      scaled so that a query's sum is at most 120000 and each at most 32767; rounded to halves
//   v      scaled to 16383: 131000 * 16383 < 2^31
// y moves by at most V (2 (e^2d - 1) + length / 32767 + 1 / 16383).
#pragma once

namespace obert {
namespace {

struct Floats {
  using Element = float;
  static constexpr int kPerElement = 1;
  // Factors from the float to the number.
  float q = 1, k = 1, v = 1;
};

struct Fixed {
  using Element = int32_t;
  static constexpr int kPerElement = 2;
  float q = 1, k = 1, v = 1;
};

constexpr float kFixedLength = 32700.f, kFixedValue = 16383.f, kFixedSum = 120000.f;
constexpr float kFixedScores = 200.f;  // scale Q K above this asks for floats
constexpr int kFixedTokens = 20000;

inline I32 join(I32 low, I32 high) { return bit_or(bit_and(low, set(0xffff)), shift_left<16>(high)); }

inline F32 multiply_add(F32 sum, F32 a, F32 b) { return fma(a, b, sum); }
inline I32 multiply_add(I32 sum, I32 a, I32 b) { return dot2(sum, a, b); }
inline F32 zero_like(float) { return set(0.f); }
inline I32 zero_like(int32_t) { return set(0); }
inline F32 as_floats(F32 a) { return a; }
inline F32 as_floats(I32 a) { return to_float(a); }

inline float largest_lane(F32 x) {
  float lanes[kLanes], top = lanes[0] = 0;
  store(lanes, x);
  for (float l : lanes) top = l > top ? l : top;
  return top;
}

inline float sum_of_lanes(F32 x) {
  float lanes[kLanes], total = 0;
  store(lanes, x);
  for (float l : lanes) total += l;
  return total;
}

struct Extent {
  float squares;  // largest sum of squares of a token's features
  bool finite;
};

// Calls run(value) with value(d) for each feature of each vector of tokens; lanes of others are zero.
template <class Run>
inline void for_tokens(const float* x, int width, int column, size_t first, int count, const Run& run) {
  for (int done = 0; done < count;) {
    const size_t t = first + static_cast<size_t>(done);
    const int lanes = least(least(kLanes, count - done), kPanel - static_cast<int>(t % kPanel));
    const float* from = x + panel_offset(t, width, column);
    run([&](int d) {
      const float* at = from + static_cast<size_t>(d) * kPanel;
      return lanes == kLanes ? load(at) : load_first(at, lanes);
    });
    done += lanes;
  }
}

inline Extent extent(const float* x, int width, int column, int head_dim, size_t first, int count) {
  F32 top = set(0.f), all = set(0.f);
  for_tokens(x, width, column, first, count, [&](const auto& value) {
    F32 sum = set(0.f), more = set(0.f);  // two chains, to halve the waiting
    int d = 0;
    for (; d + 1 < head_dim; d += 2) {
      const F32 v = value(d), w = value(d + 1);
      sum = fma(v, v, sum);
      more = fma(w, w, more);
    }
    if (d < head_dim) sum = fma(value(d), value(d), sum);
    sum = add(sum, more);
    top = max(sum, top);
    all = add(all, sum);
  });
  return {largest_lane(top), sum_of_lanes(all) < 1e30f};  // false for NaN
}

inline float largest_value(const float* x, int width, int column, int head_dim, size_t first, int count) {
  F32 largest = set(0.f);
  for_tokens(x, width, column, first, count, [&](const auto& value) {
    F32 most = set(0.f), more = set(0.f);
    int d = 0;
    for (; d + 1 < head_dim; d += 2) {
      most = max(abs(value(d)), most);
      more = max(abs(value(d + 1)), more);
    }
    if (d < head_dim) most = max(abs(value(d)), most);
    largest = max(max(most, more), largest);
  });
  return largest_lane(largest);
}

// Of a head, over all queries and not only those of this call: results do not depend on how the work was split.
struct Extents {
  Extent q, k, v;
  explicit Extents(const Attention& a)
      : q(extent(a.q, a.q_width, a.q_column, a.head_dim, a.first_query, a.queries)),
        k(extent(a.k, a.k_width, a.k_column, a.head_dim, a.first, a.length)),
        v(extent(a.v, a.v_width, a.v_column, a.head_dim, a.first, a.length)) {}
  bool within(float scale, float least_squares, float scores) const {
    return q.finite && k.finite && v.finite && q.squares >= least_squares && k.squares >= least_squares &&
           v.squares >= least_squares &&
           __builtin_fabsf(scale) * __builtin_sqrtf(q.squares) * __builtin_sqrtf(k.squares) < scores;
  }
};

// Whether 16 bits do, and the factors.
inline bool choose_fixed(const Attention& a, Fixed& n) {
  if (!a.integers || a.out || a.length > kFixedTokens) return false;
  // Near a border between two codes the smallest error shows as a whole step.
  if (a.scores.scale != 0.f || a.probabilities.scale != 0.f) return false;
  const Extents e(a);
  if (!e.within(a.scale, 1e-30f, kFixedScores)) return false;
  n.q = kFixedLength / __builtin_sqrtf(e.q.squares);
  n.k = kFixedLength / __builtin_sqrtf(e.k.squares);
  n.v = kFixedValue / largest_value(a.v, a.v_width, a.v_column, a.head_dim, a.first, a.length);
  return true;
}

// One row of the head, all tokens or one block of queries: [ceil(head_dim / 2)][stride] dwords, or floats.
inline void put_features(const Floats&, const float* x, int width, int column, int head_dim, size_t first,
                         int count, int padded, float, float* to, size_t stride) {
  for (int d = 0; d < head_dim; ++d) {
    float* row = to + static_cast<size_t>(d) * stride;
    copy_tokens(x, width, column + d, first, count, row);
    for (int i = count; i < padded; ++i) row[i] = 0.f;
  }
}

inline void put_features(const Fixed&, const float* x, int width, int column, int head_dim, size_t first,
                         int count, int padded, float factor, int32_t* to, size_t stride) {
  const F32 f = set(factor);
  for (int done = 0; done < count;) {
    const size_t t = first + static_cast<size_t>(done);
    const int run = least(least(kLanes, count - done), kPanel - static_cast<int>(t % kPanel));
    const float* from = x + panel_offset(t, width, column);
    const auto number = [&](int d) {
      return round(mul(run == kLanes ? load(from + static_cast<size_t>(d) * kPanel)
                                     : load_first(from + static_cast<size_t>(d) * kPanel, run),
                       f));
    };
    for (int d = 0; d < head_dim; d += 2) {
      const I32 pair = join(number(d), d + 1 < head_dim ? number(d + 1) : set(0));
      int32_t* at = to + static_cast<size_t>(d / 2) * stride + done;
      if (run == kLanes) store(at, pair);
      else store_first(at, pair, run);
    }
    done += run;
  }
  for (int d = 0; d < head_dim; d += 2)
    for (int i = count; i < padded; ++i) to[static_cast<size_t>(d / 2) * stride + i] = 0;
}

// `square` holds kLanes tokens, features in lanes: rows of [tokens][stride] floats, or of
// [tokens / 2][stride] dwords.
inline void put_values(const Floats&, const I32* square, int count, int k, size_t stride, float* to) {
  for (int i = 0; i < count; ++i) store(to + static_cast<size_t>(k + i) * stride, as_float(square[i]));
}

inline void put_values(const Fixed& n, const I32* square, int count, int k, size_t stride, int32_t* to) {
  const F32 f = set(n.v);
  const auto number = [&](int i) { return i < count ? round(mul(as_float(square[i]), f)) : set(0); };
  for (int i = 0; i < count; i += 2)
    store(to + static_cast<size_t>((k + i) / 2) * stride, join(number(i), number(i + 1)));
}

// Turns [keys][kQueries] of e^(s - top) into what multiplies the values, in place, and gives the
// factor that makes averages of the sums. NaN in `total` comes out again.
inline F32 finish_weights(const Floats&, float*, int, F32 total) { return div(set(1.f), total); }

inline F32 finish_weights(const Fixed& n, float* scores, int length, F32 total) {
  const F32 f = min(set(32767.f), div(set(kFixedSum), total));
  I32 sum = set(0);
  for (int k = 0; k < length; k += 2) {
    const I32 p = round(mul(load(scores + static_cast<size_t>(k) * kQueries), f));
    const I32 q =
        k + 1 < length ? round(mul(load(scores + static_cast<size_t>(k + 1) * kQueries), f)) : set(0);
    sum = add(sum, add(p, q));
    store(scores + static_cast<size_t>(k / 2) * kQueries, as_float(join(p, q)));
  }
  return div(total, mul(total, mul(to_float(sum), set(n.v))));
}

}  // namespace
}  // namespace obert
