// How large the queries, keys and values of a head are. Include after attention_layout.h.
#pragma once

namespace obert {
namespace {

inline float largest_lane(F32 x) {
  float lanes[kLanes], top = lanes[0] = 0;
  store(lanes, x);
  for (float l : lanes) top = l > top ? l : top;
  return top;
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

}  // namespace
}  // namespace obert
