// Attention of a few queries, in floats: keys in lanes, one query after another. Include after attention_softmax.h.
//
//   scores [keys]    sums over d of q[d], broadcast, times a row of k
//   y      [d]       sums over the lanes of the weights times a row of v, kLanes rows through a transpose
// Queries in lanes would leave most of a block of them empty, and want keys and values brought into place
// first. Bound by loads: each query reads every key and value once, from where it lies.
#pragma once

namespace obert {
namespace {

constexpr int kFewQueries = 8;
static_assert(kFewQueries <= kQueries, "they are handed over as one block");

// Of a sequence and not of a call: results do not depend on how the work was split.
inline bool are_few(const Attention& a) { return a.queries <= kFewQueries; }

inline float sum_of_lanes(F32 x) {
  float lanes[kLanes], total = 0;
  store(lanes, x);
  for (float l : lanes) total += l;
  return total;
}

// Calls f(token, key, count) for runs of keys that lie side by side in a panel.
template <class F>
OBERT_INLINE void for_key_runs(const Attention& a, const F& f) {
  for (int key = 0; key < a.length;) {
    const size_t token = a.first + static_cast<size_t>(key);
    const int count = least(a.length - key, kPanel - static_cast<int>(token % kPanel));
    f(token, key, count);
    key += count;
  }
}

// Products of the query with V vectors of keys, the last of which has `lanes`.
template <int V>
OBERT_INLINE void multiply_query(const float* q, const float* k, int head_dim, int lanes, float* scores) {
  F32 sum[V];
  for (int v = 0; v < V; ++v) sum[v] = set(0.f);
  for (int d = 0; d < head_dim; ++d, q += kPanel, k += kPanel) {
    const F32 w = set(*q);
    for (int v = 0; v < V; ++v)
      sum[v] = fma(lanes == kLanes ? load(k + v * kLanes) : load_first(k + v * kLanes, lanes), w, sum[v]);
  }
  for (int v = 0; v < V; ++v) store(scores + v * kLanes, sum[v]);
}

// Scores of one query, mask and roundings included, and -inf up to a whole vector; returns the largest.
inline F32 score_keys(const Attention& a, int query, float* scores) {
  const float* q = a.q + panel_offset(a.first_query + static_cast<size_t>(query), a.q_width, a.q_column);
  for_key_runs(a, [&](size_t token, int key, int count) {
    const float* k = a.k + panel_offset(token, a.k_width, a.k_column);
    int i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes) multiply_query<4>(q, k + i, a.head_dim, kLanes, scores + key + i);
    // What a vector stores beyond its keys, the next run stores again.
    for (; i < count; i += kLanes) multiply_query<1>(q, k + i, a.head_dim, least(kLanes, count - i), scores + key + i);
  });
  const float* mask = a.mask ? a.mask + static_cast<size_t>(query) * a.mask_stride : nullptr;
  const Rounder rounding(a.scores);
  F32 top = set(-__builtin_inff());
  for (int key = 0; key < a.length; key += kLanes) {
    F32 x = mul(load(scores + key), set(a.scale));
    const int lanes = least(kLanes, a.length - key);
    if (a.scores.scale != 0.f) x = rounding(x);
    if (mask) x = add(x, lanes == kLanes ? load(mask + key) : load_first(mask + key, lanes));
    store(scores + key, x);
    for (int i = lanes; i < kLanes; ++i) scores[key + i] = -__builtin_inff();
    top = max(top, load(scores + key));
  }
  float lane[kLanes], largest = -__builtin_inff();
  store(lane, top);
  for (float one : lane) largest = one > largest ? one : largest;
  return set(largest);
}

// Scores become probabilities, 0 beyond the last key unless all are NaN.
inline void make_probabilities(const Attention& a, float* scores, F32 top) {
  F32 total = set(0.f);
  for (int key = 0; key < a.length; key += kLanes) {
    const F32 p = exp_of_negative(sub(load(scores + key), top));
    total = add(total, p);
    store(scores + key, p);
  }
  const F32 share = set(1.f / sum_of_lanes(total));
  const Rounder rounding(a.probabilities);
  for (int key = 0; key < a.length; key += kLanes) {
    F32 p = mul(load(scores + key), share);
    if (a.nan_to_zero) p = max(p, set(0.f));  // the second operand where the first is NaN
    if (a.probabilities.scale != 0.f) p = rounding(p);
    store(scores + key, p);
  }
}

// Averages of one row of values, lane by lane.
inline F32 weigh_values(const Attention& a, const float* weights, int d) {
  F32 even = set(0.f), odd = set(0.f);
  for_key_runs(a, [&](size_t token, int key, int count) {
    const float* v = a.v + panel_offset(token, a.v_width, a.v_column + d);
    int i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
      even = fma(load(v + i), load(weights + key + i), even);
      odd = fma(load(v + i + kLanes), load(weights + key + i + kLanes), odd);
    }
    for (; i < count; i += kLanes) {
      const int lanes = least(kLanes, count - i);
      even = lanes == kLanes ? fma(load(v + i), load(weights + key + i), even)
                             : fma(load_first(v + i, lanes), load_first(weights + key + i, lanes), even);
    }
  });
  return add(even, odd);
}

void attend_few(const Attention& a) {
  const AttentionScratch s(a.length, a.head_dim);
  float *memory = static_cast<float*>(a.scratch), *scores = memory + s.scores, *y = memory + s.y;
  for (int i = 0; i < a.head_dim * kQueries; ++i) y[i] = 0.f;
  for (int query = a.query_begin; query < a.query_end; ++query) {
    make_probabilities(a, scores, score_keys(a, query, scores));
    for (int d = 0; d < a.head_dim; d += kLanes) {
      I32 square[kLanes];
      const int rows = least(kLanes, a.head_dim - d);
      for (int i = 0; i < kLanes; ++i) square[i] = i < rows ? as_int(weigh_values(a, scores, d + i)) : set(0);
      transpose(square);
      F32 sum = as_float(square[0]);
      for (int i = 1; i < kLanes; ++i) sum = add(sum, as_float(square[i]));
      float lane[kLanes];
      store(lane, sum);
      for (int i = 0; i < rows; ++i) y[(d + i) * kQueries + query - a.query_begin] = lane[i];
    }
  }
  put_queries(a, y, a.query_begin);
}

}  // namespace
}  // namespace obert
