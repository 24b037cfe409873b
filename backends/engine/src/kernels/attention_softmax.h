// Attention but for its two products: scores become weights, queries in lanes, softmax along memory.
// Include after attention_layout.h.
//
//   scores [keys][queries]     of k and q
//   y      [d][queries]        of v and the weights [keys][queries]
// Queries go in blocks of 2 kLanes; their scores over all keys stay in the first- or second-level cache.
// Bound by the exponentials: 14 vector instructions of each, 3 more to scale, mask and compare a score.
#pragma once

namespace obert {
namespace {

// Rounds [keys][kQueries] of scores where the graph does, adds the mask and gives the largest.
inline F32 round_scores_of(const Attention& a, float* scores, const float* mask) {
  const Rounder rounding(a.scores);
  F32 top = set(-__builtin_inff());
  for (int k = 0; k < a.length; ++k) {
    float* at = scores + static_cast<size_t>(k) * kQueries;
    F32 x = rounding(load(at));
    if (mask) x = add(x, load(mask + static_cast<size_t>(k) * kQueries));
    else if (a.mask) x = add(x, set(a.mask[k]));
    top = max(top, x);
    store(at, x);
  }
  return top;
}

// The key's scores of vector i of the queries, which become e^(s - top).
OBERT_INLINE F32 exponential(const float* scores, int key, int i, F32 top) {
  return exp_of_negative(sub(load(scores + static_cast<size_t>(key) * kQueries + i * kLanes), top));
}

// Makes e^(s - top) of scores [keys][kQueries] and adds them up.
OBERT_INLINE void exponentials(float* scores, int keys, const F32 (&top)[2], F32 (&total)[2]) {
  for (int key = 0; key < keys; ++key)
    for (int i = 0; i < 2; ++i) {
      const F32 p = exponential(scores, key, i, top[i]);
      total[i] = add(total[i], p);
      store(scores + static_cast<size_t>(key) * kQueries + i * kLanes, p);
    }
}

// Makes probabilities of e^(s - top) where the graph does something to them before they are used.
inline void round_weights(const Attention& a, float* scores, F32 total) {
  const Rounder rounding(a.probabilities);
  const F32 share = div(set(1.f), total);
  for (int k = 0; k < a.length; ++k) {
    float* at = scores + static_cast<size_t>(k) * kQueries;
    F32 p = mul(load(at), share);
    if (a.nan_to_zero) p = max(p, set(0.f));  // the second operand where the first is NaN
    if (a.probabilities.scale != 0.f) p = rounding(p);
    store(at, p);
  }
}

// `products` says how the two are multiplied: FloatProducts (attention_floats.h), CodeProducts (attention_codes.h) or
// TileProducts (attention_tiles.h). Inlined into its caller, GCC 12 leaves it too few registers: AVX2 lost 40% to that.
template <class Products>
__attribute__((noinline)) void attend(const Attention& a, Products products) {
  float* const scores = products.scores;
  products.put_keys_and_values();

  for (int query = a.query_begin; query < a.query_end; query += kQueries) {
    products.put_block(query, least(kQueries, a.query_end - query));
    const bool each = a.mask && a.mask_stride;
    if (each) transpose_mask(a, query, products.mask);

    const F32 scale = set(products.scale);
    const float* const mask = products.mask;
    // Rounding comes between scale and mask: a pass of its own, to leave the common case its registers.
    const bool round_scores = a.scores.scale != 0.f;
    const float *const each_now = each && !round_scores ? mask : nullptr,
                *const row_now = !each && !round_scores ? a.mask : nullptr;
    F32 top[2] = {set(-__builtin_inff()), set(-__builtin_inff())};
    products.multiply_keys(top, [=](int key, int i, F32 product) {
      F32 x = mul(product, scale);
      float* at = scores + static_cast<size_t>(key) * kQueries + i * kLanes;
      if (each_now) x = add(x, load(each_now + static_cast<size_t>(key) * kQueries + i * kLanes));
      else if (row_now) x = add(x, set(row_now[key]));
      store(at, x);
      return x;
    });

    if (round_scores)
      for (int i = 0; i < 2; ++i) top[i] = round_scores_of(a, scores + i * kLanes, each ? mask + i * kLanes : nullptr);

    const bool round_weights_too =
        !products.rounds_weights && (a.probabilities.scale != 0.f || (a.nan_to_zero && products.sums_keep_nan));
    F32 total[2] = {set(0.f), set(0.f)};
    products.weigh(top, total, round_weights_too);

    F32 share[2] = {set(products.value_scale), set(products.value_scale)};
    for (int i = 0; i < 2; ++i) {
      if (round_weights_too) {
        round_weights(a, scores + i * kLanes, total[i]);
        continue;
      }
      share[i] = products.finish(i, total[i]);
      // Sums that keep no NaN are finite: a share of 0 makes 0 of them. The second operand where the first is NaN.
      if (a.nan_to_zero) share[i] = max(share[i], set(0.f));
    }
    products.average_values(share);
    put_queries(a, products.y, query);
  }
}

}  // namespace
}  // namespace obert
