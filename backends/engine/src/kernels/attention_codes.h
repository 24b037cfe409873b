// Attention of 8-bit codes on vectors: products of whole numbers, 16 bits each, two to a dword. Include after
// attention_products.h and attention_softmax.h.
//
// A dword of codes, four features of a token, falls into two of such pairs by a mask: features 0 and 2, 1 and 3. A pair of
// values joins two keys, one vector of keys with the next, so that nothing is transposed.
//   scores [keys][queries]     a = k [head_dim / 2][keys],    b = q [head_dim / 2][queries]
//   y      [d][queries]        a = v [pairs / 32][d][32],     b = p [pairs][queries]
// Scores are exact up to 33,000 features. Probabilities that the graph rounds are whole numbers too. Others are floats, and so
// are the values they weigh; or, with `integers`, e^(s - top) times the largest factor that keeps each within 65535 and a
// query's sum within 2^31 / 255, rounded to halves. y moves by at most length / 65535 of the largest value then, about a
// tenth of the square root of that in practice. These are multiplied less 32768, and sums begin with what that takes away:
// additions may wrap around, sums do not.
#pragma once

namespace obert {
namespace {

constexpr int kCodeSums = 33000;   // 255^2 times as many is less than 2^31
constexpr float kWeight = 65535.f, kWeightSum = 8400000.f;   // with half of each of 33,000 keys on top less than 2^31 / 255
constexpr int kLessWeight = 32768;
constexpr int kPairs = 32;         // pairs of keys that lie side by side

// Whether sums of so many whole numbers do not overflow.
inline bool codes_fit(const Attention& a) { return a.length <= kCodeSums && a.head_dim <= kCodeSums; }

struct CodeScratch {
  int keys;   // in whole pairs of vectors
  size_t k_stride, k, v, q, scores, mask, y, sums, edge, floats;
  CodeScratch(int length, int head_dim) : keys(padded_to(length, 2 * kLanes)) {
    const auto d = static_cast<size_t>(padded_to(head_dim, kBlock)), n = static_cast<size_t>(keys);
    k_stride = n + 16;   // rows a multiple of 4 KB apart would share cache sets
    size_t at = 0;
    const auto take = [&](size_t count) {
      const size_t here = at;
      at += (count + 15) / 16 * 16;
      return here;
    };
    k = take(d / 2 * k_stride);
    v = take(d * (n + 2 * kPanel));   // of floats, in whole panels; of pairs half as much
    q = take(d / 2 * kQueries);
    scores = take(n * kQueries);
    mask = take(n * kQueries);
    y = take(d * kQueries);
    sums = take(d * kLanes);
    edge = take(d / 2 * kLanes);
    floats = at;
  }
};

inline I32 byte_pairs(I32 dword) { return bit_and(dword, set(0x00ff00ff)); }

// Dwords of codes of a head, as FeatureRows has rows of floats.
inline FeatureRows code_rows(const uint8_t* codes, int width, int column, int head_dim, size_t first, int count, float* memory) {
  return FeatureRows(reinterpret_cast<const float*>(codes), width / kBlock, column / kBlock, head_dim / kBlock, head_dim / kBlock, first,
                     count, memory);
}

// The floats that the tokens first .. first + count of a head's codes stand for, in panels of its own that begin at
// `memory`. What it gives is where a buffer of such panels would begin.
inline const float* put_floats(const uint8_t* codes, int width, int column, int head_dim, const Rounding& of, size_t first, size_t count,
                               float* memory) {
  const size_t begin = first / kPanel, size = static_cast<size_t>(head_dim) * kPanel;
  const I32 minus_zero = set(-of.zero_point);
  const F32 scale = set(of.scale);
  float* to = memory;
  for (size_t panel = begin; panel * kPanel < first + count; ++panel, to += size) {
    const int32_t* from = reinterpret_cast<const int32_t*>(codes) + panel_offset(panel * kPanel, width / kBlock, column / kBlock);
    for (int d = 0; d < head_dim; d += kBlock)
      for (int t = 0; t < kPanel; t += kLanes) {
        I32 number[kBlock];
        unpack_codes(load(from + d / kBlock * kPanel + t), minus_zero, number);
        for (int i = 0; i < kBlock; ++i) store(to + (d + i) * kPanel + t, mul(to_float(number[i]), scale));
      }
  }
  return memory - begin * size;
}

class CodeProducts {
 public:
  const bool rounds_weights, sums_keep_nan;
  const float value_scale;
  float *scores, *mask, *y;
  float scale;

  explicit CodeProducts(const Attention& a)
      : rounds_weights(a.probabilities.scale != 0.f || a.integers), sums_keep_nan(!rounds_weights), value_scale(a.of_v.scale),
        scale(a.scale * a.of_q.scale * a.of_k.scale), a_(a), s_(a.length, a.head_dim), pairs_(s_.keys / 2) {
    float* floats = static_cast<float*>(a.scratch);
    int32_t* dwords = static_cast<int32_t*>(a.scratch);
    k_ = dwords + s_.k, v_ = dwords + s_.v, q_ = dwords + s_.q, sums_ = dwords + s_.sums, edge_ = floats + s_.edge;
    scores = floats + s_.scores, mask = floats + s_.mask, y = floats + s_.y;
  }

  void put_keys_and_values() {
    put_features(a_.k_codes, a_.k_width, a_.k_column, a_.of_k, a_.first, a_.length, k_, s_.k_stride);
    if (rounds_weights) put_values();
    else values_ = put_floats(a_.v_codes, a_.v_width, a_.v_column, a_.head_dim, {1.f, a_.of_v.zero_point}, a_.first, a_.length, floats_of(v_));
  }
  void put_block(int query, int count) {
    put_features(a_.q_codes, a_.q_width, a_.q_column, a_.of_q, a_.first_query + static_cast<size_t>(query), count, q_, kQueries);
  }
  template <class Put>
  OBERT_INLINE void multiply_keys(F32 (&top)[2], const Put& put) {
    for_tiles<int32_t>(padded_to(a_.length, kTileStep), [&](auto tile, int begin) {
      tile.multiply(k_ + begin, s_.k_stride, q_, kQueries, a_.head_dim / 2, [&](int m, int i, I32 sum) {
        if (begin + m < a_.length) top[i] = max(top[i], put(begin + m, i, to_float(sum)));
      });
    });
  }
  OBERT_INLINE void weigh(const F32 (&top)[2], F32 (&total)[2], bool) { exponentials(scores, a_.length, top, total); }
  // Makes whole numbers of vector i of e^(s - top), if it does, and gives the factor that makes averages of the sums. NaN in
  // `total` comes out again, unless the graph rounds probabilities.
  F32 finish(int i, F32 total) {
    if (!rounds_weights) return div(set(value_scale), total);
    const Rounding& p = a_.probabilities;
    if (p.scale == 0.f) {
      const F32 factor = min(set(kWeight), div(set(kWeightSum), total)), less = set(-static_cast<float>(kLessWeight));
      const I32 sum = join_weights(i, [=](F32 e) { return round(fma(e, factor, less)); });
      const F32 whole = to_float(add(sum, set(a_.length * kLessWeight)));
      return div(mul(total, set(value_scale)), mul(total, whole));
    }
    const F32 factor = div(set(1.f / p.scale), total), highest = set(static_cast<float>(255 - p.zero_point));
    const F32 lowest = set(a_.nan_to_zero ? 0.f : static_cast<float>(-p.zero_point));   // what NaN becomes
    // The second operand where the first is NaN.
    join_weights(i, [=](F32 e) { return round(min(max(mul(e, factor), lowest), highest)); });
    return set(p.scale * value_scale);
  }
  OBERT_INLINE void average_values(const F32 (&share)[2]) {
    if (rounds_weights) {
      average<int32_t>(share, [this](auto& rows, int begin) {
        rows.begin(sums_ + begin);
        const int32_t* weights = static_cast<const int32_t*>(static_cast<const void*>(scores));
        for (int pair = 0; pair < pairs_; pair += kPairs)
          rows.template add_all<kPairs>(v_ + static_cast<size_t>(pair) * a_.head_dim + begin * kPairs, 1,
                                        weights + static_cast<size_t>(pair) * kQueries, kQueries, least(kPairs, pairs_ - pair));
      });
      return;
    }
    average<float>(share, [this](auto& rows, int begin) {
      rows.clear();
      for_key_runs(a_, [&](size_t token, int key, int count) {
        rows.template add_all<kPanel>(values_ + panel_offset(token, a_.head_dim, begin), 1, scores + static_cast<size_t>(key) * kQueries,
                                      kQueries, count);
      });
    });
  }

 private:
  static float* floats_of(int32_t* memory) { return static_cast<float*>(static_cast<void*>(memory)); }

  template <class Element, class Add>
  OBERT_INLINE void average(const F32 (&share)[2], const Add& add) {
    for_tiles<Element>(a_.head_dim, [&](auto tile, int begin) {
      Rows<Element, decltype(tile)::kRows> rows;
      add(rows, begin);
      rows.for_each(0, [&](int m, int i, auto sum) {
        store(y + (begin + m) * kQueries + i * kLanes, mul(as_floats(sum), share[i]));
      });
    });
  }

  static I32 both(int zero_point) { return set(zero_point | zero_point << 16); }

  // [head_dim / 2][stride] of some tokens.
  void put_features(const uint8_t* codes, int width, int column, const Rounding& of, size_t first, int count, int32_t* to, size_t stride) {
    const I32 zero_point = both(of.zero_point);
    for (int t = 0; t < count; t += kLanes) {
      const FeatureRows row = code_rows(codes, width, column, a_.head_dim, first + static_cast<size_t>(t), count - t, edge_);
      int32_t* at = to + t;
      for (int g = 0; g < a_.head_dim / kBlock; ++g, at += 2 * stride) {
        const I32 dword = as_int(row(g));
        store(at, sub_pairs(byte_pairs(dword), zero_point));
        store(at + stride, sub_pairs(byte_pairs(shift_right<8>(dword)), zero_point));
      }
    }
  }

  void put_values() {
    const I32 zero_point = both(a_.of_v.zero_point), upper = set(static_cast<int32_t>(0xffff0000u));
    const bool less = a_.probabilities.scale == 0.f;   // weights that the graph does not round come less kLessWeight
    for (int i = 0; i < a_.head_dim; ++i) store(sums_ + i * kLanes, set(0));
    for (int pair = 0; pair < pairs_; pair += kLanes) {
      const int key = 2 * pair;
      const auto rows = [&](int from, float* memory) {
        return code_rows(a_.v_codes, a_.v_width, a_.v_column, a_.head_dim, a_.first + static_cast<size_t>(from), a_.length - from, memory);
      };
      const FeatureRows first = rows(key, edge_), second = rows(key + kLanes, edge_ + a_.head_dim / kBlock * kLanes);
      const I32 counted = bit_or(ones(a_.length - key), shift_left<16>(ones(a_.length - key - kLanes)));
      int32_t *to = v_ + static_cast<size_t>(pair / kPairs * kPairs) * a_.head_dim + pair % kPairs, *sum = sums_;
      for (int g = 0; g < a_.head_dim / kBlock; ++g, to += kBlock * kPairs, sum += kBlock * kLanes) {
        const I32 one = as_int(first(g)), other = as_int(second(g));
        const I32 even = byte_pairs(one), odd = byte_pairs(shift_right<8>(one));
        const I32 other_even = byte_pairs(other), other_odd = byte_pairs(shift_right<8>(other));
        const I32 pairs[kBlock] = {bit_or(bit_and(even, set(0xffff)), shift_left<16>(other_even)),
                                   bit_or(bit_and(odd, set(0xffff)), shift_left<16>(other_odd)),
                                   bit_or(shift_right<16>(even), bit_and(other_even, upper)),
                                   bit_or(shift_right<16>(odd), bit_and(other_odd, upper))};
        for (int i = 0; i < kBlock; ++i) {
          const I32 values = sub_pairs(pairs[i], zero_point);
          store(to + i * kPairs, values);
          if (less) store(sum + i * kLanes, dot2(load(sum + i * kLanes), values, counted));
        }
      }
    }
    // What sums begin with.
    for (int i = 0; i < a_.head_dim; ++i) {
      uint32_t sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<uint32_t>(sums_[i * kLanes + lane]);
      sums_[i] = static_cast<int32_t>(sum * kLessWeight);
    }
  }

  // 1 in the first `count` lanes, 0 in others.
  static I32 ones(int count) {
    int32_t lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < count;
    return load(lanes);
  }

  // Turns [keys][kQueries] of e^(s - top) into pairs of weight(e), in place; keys beyond the last weigh nothing. Gives the
  // sums of all.
  template <class Weight>
  OBERT_INLINE I32 join_weights(int i, const Weight& weight) {
    I32 sum = set(0);
    for (int pair = 0; pair < pairs_; ++pair) {
      const int key = pair / kLanes * 2 * kLanes + pair % kLanes;
      const float* at = scores + static_cast<size_t>(key) * kQueries + i * kLanes;
      const I32 p = key < a_.length ? weight(load(at)) : set(0);
      const I32 q = key + kLanes < a_.length ? weight(load(at + kLanes * kQueries)) : set(0);
      sum = add(sum, add(p, q));
      store(scores + static_cast<size_t>(pair) * kQueries + i * kLanes, as_float(join(p, q)));
    }
    return sum;
  }

  const Attention& a_;
  const CodeScratch s_;
  const int pairs_;
  int32_t *k_, *v_, *q_, *sums_;
  const float* values_ = nullptr;
  float* edge_;
};

// What floats need of scratch, and behind it the head's queries, keys and values where they have to be made of codes.
struct FloatScratch {
  size_t panels, q, k, v, floats;
  FloatScratch(int length, int head_dim) : panels(static_cast<size_t>(length) / kPanel + 2) {
    const size_t head = panels * static_cast<size_t>(head_dim) * kPanel;
    q = AttentionScratch(length, head_dim).floats, k = q + head, v = k + head, floats = v + head;
  }
};

// The same attention of floats, in the scratch of `a`.
inline Attention in_floats(const Attention& a) {
  const FloatScratch s(a.length, a.head_dim);
  float* const memory = static_cast<float*>(a.scratch);
  const auto keys = static_cast<size_t>(a.length), begin = static_cast<size_t>(a.query_begin);
  Attention floats = a;
  floats.q = put_floats(a.q_codes, a.q_width, a.q_column, a.head_dim, a.of_q, a.first_query + begin,
                        static_cast<size_t>(a.query_end) - begin, memory + s.q);
  floats.k = put_floats(a.k_codes, a.k_width, a.k_column, a.head_dim, a.of_k, a.first, keys, memory + s.k);
  floats.v = put_floats(a.v_codes, a.v_width, a.v_column, a.head_dim, a.of_v, a.first, keys, memory + s.v);
  floats.q_codes = floats.k_codes = floats.v_codes = nullptr;
  floats.q_width = floats.k_width = floats.v_width = a.head_dim;
  floats.q_column = floats.k_column = floats.v_column = 0;
  return floats;
}

}  // namespace
}  // namespace obert
