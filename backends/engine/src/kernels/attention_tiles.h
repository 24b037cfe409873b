// Attention on tiles of bfloat16, near float's precision. Include after attention.h and tile_<how>.h.
//
// A float is a pair of bfloat16: high, the nearest to x, and low, the nearest to x - high, so that
// |x - high - low| <= 2^-17 |x|. Products are high high + high low + low high, summed in float32; what is
// left out is at most 2^-16 |x y|, so that a product is off by at most 2^-15 of itself, about 2^-18 in
// the root mean square, of either sign.
//
//   scores [keys][queries]     rows of the first operand: keys, 32 features each
//   y      [d][queries]        rows of the first operand: features, 32 keys each
// The second operand holds its depth two to a dword: queries, and weights in place of their scores. The
// dwords of values join key j of 32 with key j + 16, as panels lie, without a shuffle; only keys are transposed.
//
// Whole numbers that 8-bit codes stand for are bfloat16 themselves, high parts alone: a third of the multiplications of
// queries and keys, two thirds of those of values, or a third where the graph rounds probabilities too. Sums of whole
// numbers are exact up to 2^24.
//
// Sums of 2 x 2 tiles, where every tile that is loaded serves two multiplications: 8 loads of 8 cycles beside
// 12 multiplications of 16. A head of 128 tokens x 64 is bound by its exponentials, see README.md.
//
// Tiles read and write denormals as zero, and the pair of an infinity is NaN: `tiles_suit` leaves heads with
// infinities or NaN, or near denormals as a whole, to floats. A softmax that is NaN reaches y in the factor of its sums.
#pragma once
#include "attention_extents.h"

namespace obert {
namespace {

static_assert(kLanes == kTileBlocks && kQueries == 2 * kTileBlocks, "a vector is a row of a tile");

constexpr int kDepth = 32;                       // bfloat16 of a row
constexpr size_t kPairTile = 2 * kTileDwords;    // a tile of high parts and one of low parts
constexpr float kTileScores = 200.f;             // scale Q K above this asks for floats: see Extents
constexpr float kTileSquares = 1e-20f;           // and so do lengths whose products come near denormals

// The high and low parts of two vectors, those of the first in the lower halves of dwords. Halves round
// away from zero: the low part makes up for it, and it takes one addition.
struct SplitPair {
  I32 high, low;
  OBERT_INLINE SplitPair(F32 first, F32 second) {
    const I32 half = set(0x8000), upper = set(static_cast<int32_t>(0xffff0000u));
    const I32 a = bit_and(add(as_int(first), half), upper), b = bit_and(add(as_int(second), half), upper);
    high = bit_or(shift_right<16>(a), b);
    const I32 c = add(as_int(sub(first, as_float(a))), half), d = add(as_int(sub(second, as_float(b))), half);
    low = bit_or(shift_right<16>(c), bit_and(d, upper));
  }
};

// Whole numbers of at most 8 bits and a sign, which are their own high parts.
struct WholePair {
  I32 high;
  OBERT_INLINE WholePair(F32 first, F32 second)
      : high(bit_or(shift_right<16>(as_int(first)), bit_and(as_int(second), set(static_cast<int32_t>(0xffff0000u))))) {}
};

// Queries, keys or values of a head.
struct Operand {
  const float* floats;
  const uint8_t* codes;
  int width, column, head_dim;
  Rounding of;
};

// Which numbers of a head tiles multiply: for_pairs calls put(j, pair) with the features 2 j and 2 j + 1 of kLanes tokens,
// 32 features in all, for_values calls put(j, feature) with each of 16; both have zeros, or what does not matter, in the
// place of features and tokens that are not there.
struct InPairs {
  static constexpr bool kLow = true;
  using Pair = SplitPair;
  static float score_scale(const Attention&) { return 1.f; }
  static float value_scale(const Attention&) { return 1.f; }
  template <class Put>
  static OBERT_INLINE void for_pairs(const Operand& x, int d, size_t first, int count, float* memory, const Put& put) {
    const FeatureRows row(x.floats, x.width, x.column + d, x.head_dim - d, kDepth, first, count, memory);
    for (int j = 0; j < kDepth / 2; ++j) put(j, Pair(row(2 * j), row(2 * j + 1)));
  }
  template <class Put>
  static OBERT_INLINE void for_values(const Operand& x, int d, size_t first, int count, float* memory, const Put& put) {
    const FeatureRows row(x.floats, x.width, x.column + d, x.head_dim - d, kTileRows, first, count, memory);
    for (int j = 0; j < kTileRows; ++j) put(j, row(j));
  }
};

struct InCodes {
  static constexpr bool kLow = false;
  using Pair = WholePair;
  static float score_scale(const Attention& a) { return a.of_q.scale * a.of_k.scale; }
  static float value_scale(const Attention& a) { return a.of_v.scale; }
  template <class Put>
  static OBERT_INLINE void for_pairs(const Operand& x, int d, size_t first, int count, float* memory, const Put& put) {
    for_numbers<kDepth>(x, d, first, count, memory, [&](int g, const F32 (&number)[kBlock]) {
      put(2 * g, Pair(number[0], number[1]));
      put(2 * g + 1, Pair(number[2], number[3]));
    });
  }
  template <class Put>
  static OBERT_INLINE void for_values(const Operand& x, int d, size_t first, int count, float* memory, const Put& put) {
    for_numbers<kTileRows>(x, d, first, count, memory, [&](int g, const F32 (&number)[kBlock]) {
      for (int i = 0; i < kBlock; ++i) put(kBlock * g + i, number[i]);
    });
  }

 private:
  // Four features at a time. Dwords that are not there are zero, and stand for minus the zero point: what they are
  // multiplied by is zero, or the product is not read.
  template <int Features, class Put>
  static OBERT_INLINE void for_numbers(const Operand& x, int d, size_t first, int count, float* memory, const Put& put) {
    const FeatureRows row(reinterpret_cast<const float*>(x.codes), x.width / kBlock, (x.column + d) / kBlock, (x.head_dim - d) / kBlock,
                          Features / kBlock, first, count, memory);
    const I32 minus_zero = set(-x.of.zero_point);
    for (int g = 0; g < Features / kBlock; ++g) {
      I32 code[kBlock];
      unpack_codes(as_int(row(g)), minus_zero, code);
      F32 number[kBlock];
      for (int i = 0; i < kBlock; ++i) number[i] = kBlock * g + d < x.head_dim ? to_float(code[i]) : set(0.f);
      put(g, number);
    }
  }
};

struct TileScratch {
  int keys, features;
  size_t k, v, q, scores, mask, y, edge, floats;
  TileScratch(int length, int head_dim) : keys(padded_to(length, kDepth)), features(padded_to(head_dim, kDepth)) {
    size_t at = 0;
    const auto take = [&](int rows, int columns) {
      const size_t here = at;
      at += static_cast<size_t>(rows) * static_cast<size_t>(columns);
      return here;
    };
    k = take(keys, features);
    v = take(features, keys);
    q = take(features, kQueries);
    scores = take(keys, kQueries);
    mask = take(keys, kQueries);
    y = take(features, kQueries);
    edge = take(kDepth, kLanes);
    floats = at;
  }
};

// [32][kQueries] of sums of `depth` / 32 pairs of tiles: rows 0 .. 15 of `a` and rows 16 .. 31, at `next`,
// with `b` [depth][kQueries]. The four sums take turns, so that none waits for itself. Without `Low`, low parts of `a` are
// zero and not there, without `low_b` those of `b`.
template <bool Low>
inline void multiply_pairs(const int32_t* a, const int32_t* next, const int32_t* b, bool low_b, int depth, float* sums) {
  constexpr size_t kRow = kQueries * sizeof(float), kLow = kTileDwords, kLowRows = kTileRows * kQueries;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int d = 0; d < depth; d += kDepth, a += kPairTile, next += kPairTile, b += 2 * kLowRows) {
    tile_load<4>(Low ? a + kLow : a, kTileRowBytes);
    tile_load<6>(b, kRow);
    tile_dot_bf16<0, 4, 6>();
    tile_load<7>(b + kLanes, kRow);
    tile_dot_bf16<1, 4, 7>();
    tile_load<5>(Low ? next + kLow : next, kTileRowBytes);
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
    if constexpr (Low) {
      tile_load<4>(a, kTileRowBytes);
      tile_dot_bf16<0, 4, 6>();
      tile_dot_bf16<1, 4, 7>();
      tile_load<5>(next, kTileRowBytes);
      tile_dot_bf16<2, 5, 6>();
      tile_dot_bf16<3, 5, 7>();
    }
    if (!low_b) continue;
    tile_load<6>(b + kLowRows, kRow);
    tile_load<7>(b + kLowRows + kLanes, kRow);
    tile_dot_bf16<0, 4, 6>();
    tile_dot_bf16<1, 4, 7>();
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
  }
  tile_store<0>(sums, kRow);
  tile_store<1>(sums + kLanes, kRow);
  tile_store<2>(sums + kLowRows, kRow);
  tile_store<3>(sums + kLowRows + kLanes, kRow);
}

template <class Numbers>
class TileProducts {
 public:
  // Codes are weighed by codes where the graph rounds probabilities.
  const bool rounds_weights, sums_keep_nan;
  float *scores, *mask, *y;
  float scale, value_scale;

  explicit TileProducts(const Attention& a)
      : rounds_weights(!Numbers::kLow && a.probabilities.scale != 0.f), sums_keep_nan(!rounds_weights),
        scale(a.scale * Numbers::score_scale(a)), value_scale(Numbers::value_scale(a)), a_(a), s_(a.length, a.head_dim) {
    float* floats = static_cast<float*>(a.scratch);
    int32_t* dwords = static_cast<int32_t*>(a.scratch);
    k_ = dwords + s_.k, v_ = dwords + s_.v, q_ = dwords + s_.q, edge_ = floats + s_.edge;
    scores = floats + s_.scores, mask = floats + s_.mask, y = floats + s_.y;
  }

  void put_keys_and_values() {
    put_keys();
    put_values();
  }

  void put_block(int query, int count) {
    for (int half = 0; half < kQueries; half += kLanes)
      for (int d = 0; d < s_.features; d += kDepth) {
        int32_t* to = q_ + static_cast<size_t>(d) * kQueries + half;
        const Operand q = {a_.q, a_.q_codes, a_.q_width, a_.q_column, a_.head_dim, a_.of_q};
        Numbers::for_pairs(q, d, a_.first_query + static_cast<size_t>(query + half), count - half, edge_, [&](int j, const Pair& pair) {
          store(to + j * kQueries, pair.high);
          if constexpr (Numbers::kLow) store(to + (kTileRows + j) * kQueries, pair.low);
        });
      }
  }

  template <class Put>
  OBERT_INLINE void multiply_keys(F32 (&top)[2], const Put& put) {
    const auto put_sums = [&](int begin) {
      const int end = least(a_.length, begin + kDepth);
      F32 left = top[0], right = top[1];  // `top` itself would be kept up to date in memory
      for (int key = begin; key < end; ++key) {
        const float* sums = scores + static_cast<size_t>(key) * kQueries;
        left = max(left, put(key, 0, load(sums)));
        right = max(right, put(key, 1, load(sums + kLanes)));
      }
      top[0] = left, top[1] = right;
    };
    const size_t strip = kPairTile * static_cast<size_t>(s_.features / kDepth);
    for (int key = 0; key < s_.keys; key += kDepth) {
      const int32_t* a = k_ + static_cast<size_t>(key / kTileRows) * strip;
      multiply_pairs<Numbers::kLow>(a, a + strip, q_, Numbers::kLow, s_.features, scores + static_cast<size_t>(key) * kQueries);
      // While the multiplier is busy with these keys, those before them, whose stores are done.
      if (key > 0) put_sums(key - kDepth);
    }
    put_sums(s_.keys - kDepth);
  }

  // Unless something is done to weights before they are used, they are split at once.
  OBERT_INLINE void weigh(const F32 (&top)[2], F32 (&total)[2], bool change) {
    split_ = !change && !rounds_weights;
    if (!split_) return exponentials(scores, a_.length, top, total);
    const int whole = a_.length / kDepth * kDepth;
    for (int key = 0; key < whole; key += kDepth)
      for (int j = key; j < key + kTileRows; ++j)
        for (int i = 0; i < 2; ++i) {
          const F32 first = exponential(scores, j, i, top[i]), second = exponential(scores, j + kTileRows, i, top[i]);
          total[i] = add(total[i], add(first, second));
          put_split(j, i, first, second);
        }
    if (whole == a_.length) return;
    for (int j = whole; j < whole + kTileRows; ++j)
      for (int i = 0; i < 2; ++i) {
        const auto weight = [&](int key) { return key < a_.length ? exponential(scores, key, i, top[i]) : set(0.f); };
        const F32 first = weight(j), second = weight(j + kTileRows);
        total[i] = add(total[i], add(first, second));
        put_split(j, i, first, second);
      }
  }

  F32 finish(int i, F32 total) {
    if (!rounds_weights) return div(set(value_scale), total);
    (i ? right_ : left_) = div(set(1.f / a_.probabilities.scale), total);
    return set(a_.probabilities.scale * value_scale);
  }

  OBERT_INLINE void average_values(const F32 (&share)[2]) {
    if (!split_) split_weights();
    const int32_t* weights = static_cast<const int32_t*>(static_cast<const void*>(scores));
    const size_t strip = kPairTile * static_cast<size_t>(s_.keys / kDepth);
    for (int d = 0; d < s_.features; d += kDepth) {
      const int32_t* a = v_ + static_cast<size_t>(d / kTileRows) * strip;
      multiply_pairs<Numbers::kLow>(a, a + strip, weights, !rounds_weights, s_.keys, y + static_cast<size_t>(d) * kQueries);
    }
    for (int d = 0; d < a_.head_dim; ++d)
      for (int i = 0; i < 2; ++i) {
        float* at = y + static_cast<size_t>(d) * kQueries + i * kLanes;
        store(at, mul(load(at), share[i]));
      }
  }

 private:
  using Pair = typename Numbers::Pair;

  // [keys / 16][features / 32] pairs of tiles.
  void put_keys() {
    int32_t* to = k_;
    for (int key = 0; key < s_.keys; key += kTileRows)
      for (int d = 0; d < s_.features; d += kDepth, to += kPairTile) {
        const Operand k = {a_.k, a_.k_codes, a_.k_width, a_.k_column, a_.head_dim, a_.of_k};
        I32 high[kLanes], low[kLanes];
        Numbers::for_pairs(k, d, a_.first + static_cast<size_t>(key), a_.length - key, edge_, [&](int j, const Pair& pair) {
          high[j] = pair.high;
          if constexpr (Numbers::kLow) low[j] = pair.low;
        });
        transpose(high);
        for (int r = 0; r < kLanes; ++r) store(to + r * kLanes, high[r]);
        if constexpr (Numbers::kLow) {
          transpose(low);
          for (int r = 0; r < kLanes; ++r) store(to + kTileDwords + r * kLanes, low[r]);
        }
      }
  }

  // [features / 16][keys / 32] pairs of tiles.
  void put_values() {
    int32_t* to = v_;
    for (int d = 0; d < s_.features; d += kTileRows)
      for (int key = 0; key < s_.keys; key += kDepth, to += kPairTile) {
        const Operand v = {a_.v, a_.v_codes, a_.v_width, a_.v_column, a_.head_dim, a_.of_v};
        F32 left[kTileRows];
        const size_t first = a_.first + static_cast<size_t>(key);
        Numbers::for_values(v, d, first, a_.length - key, edge_, [&](int j, F32 value) { left[j] = value; });
        Numbers::for_values(v, d, first + kLanes, a_.length - key - kLanes, edge_, [&](int j, F32 right) {
          const Pair pair(left[j], right);
          store(to + j * kLanes, pair.high);
          if constexpr (Numbers::kLow) store(to + kTileDwords + j * kLanes, pair.low);
        });
      }
  }

  // In place: of each 32 keys, 16 rows of high parts and 16 of low parts. Keys beyond the last are zero.
  void split_weights() {
    for (int key = 0; key < s_.keys; key += kDepth)
      for (int j = 0; j < kTileRows; ++j)
        for (int i = 0; i < 2; ++i) {
          const float* at = scores + static_cast<size_t>(key + j) * kQueries + i * kLanes;
          put_split(key + j, i, key + j < a_.length ? weight(load(at), i) : set(0.f),
                    key + j + kTileRows < a_.length ? weight(load(at + kTileRows * kQueries), i) : set(0.f));
        }
  }

  // Of e^(s - top), which may be rounded already, the code as the graph rounds it, less the zero point.
  OBERT_INLINE F32 weight(F32 e, int i) const {
    if (!rounds_weights) return e;
    const Rounding& p = a_.probabilities;
    const F32 lowest = set(a_.nan_to_zero ? 0.f : static_cast<float>(-p.zero_point)), highest = set(static_cast<float>(255 - p.zero_point));
    return to_float(round(min(max(mul(e, i ? right_ : left_), lowest), highest)));   // the second operand where the first is NaN
  }

  // The weights of keys j and j + 16, vector i of the queries.
  OBERT_INLINE void put_split(int j, int i, F32 first, F32 second) {
    const SplitPair pair(first, second);
    float* at = scores + static_cast<size_t>(j) * kQueries + i * kLanes;
    store(at, as_float(pair.high));
    store(at + kTileRows * kQueries, as_float(pair.low));
  }

  const Attention& a_;
  const TileScratch s_;
  int32_t *k_, *v_, *q_;
  float* edge_;
  bool split_ = false;
  F32 left_ = set(0.f), right_ = set(0.f);   // what makes numbers of weights, for each vector of queries
};

// Whether a head is large enough. Beside softmax, floats take about length^2 head_dim / 8 cycles. Tiles take
// 400 for their configuration and the first latencies, one for each element of the head, in whole 32 features (to
// measure, split and transpose it), and 3 / 8 length^2 for each 32 features: at 32 tokens x 32 about 1,800 cycles
// against 4,100, at 128 x 8 10,600 against 16,400. Heads of 4 features never pay.
inline bool tiles_pay_for(const Attention& a) {
  return a.length >= 32 && a.head_dim >= 8 && static_cast<int64_t>(a.length) * a.head_dim >= 1024;
}

// Whether pairs of bfloat16 do: finite, of a size that neither overflows nor comes near denormals, and
// scores small enough that 2^-15 of them is little.
inline bool tiles_suit(const Attention& a) { return Extents(a).within(a.scale, kTileSquares, kTileScores); }

template <class Numbers>
void attention_on_tiles(const Attention& a) {
  // The registers are this thread's only inside this call.
  tile_configure(kFullTiles);
  attend(a, TileProducts<Numbers>(a));
  tile_release();
}

// On tiles where they suit, whatever a head's size.
void attention_where_tiles_suit(const Attention& a) {
  if (a.q_codes && codes_fit(a)) attention_on_tiles<InCodes>(a);
  else if (!a.q_codes && tiles_suit(a)) attention_on_tiles<InPairs>(a);
  else attention(a);
}

size_t attention_scratch_of_tiles(int length, int head_dim) {
  const size_t tiles = TileScratch(length, head_dim).floats * sizeof(float), vectors = attention_scratch(length, head_dim);
  return tiles > vectors ? tiles : vectors;
}

}  // namespace
}  // namespace obert
