// What relative positions add to scores. Include after attention.h and transpose.h.
//
// Blocks of kGroup tokens are multiplied by the columns of a table that they need, from the first to the last: few more than
// there are other tokens, because a block's tokens are neighbours. Columns lie in lanes, and so do the products
// [kGroup][columns], which stay in the first-level cache: positions of neighbours are neighbours, in some order, so that a
// vector of them is one load and one shuffle. Where they are not, they are read one by one.
// Bound by the multiplications: those of queries by keys for each term, and kGroup / length more.
#pragma once

namespace obert {
namespace {

// Features of up to kGroup tokens, where they lie, or in `memory` [features][kGroup] with zeros for what is not there.
struct TokenBlock {
  const float* at;
  size_t stride;

  TokenBlock(const float* from, int width, int column, int features, size_t first, int count, float* memory) {
    if (count == kGroup && first % kPanel <= kPanel - kGroup) {
      at = from + panel_offset(first, width, column);
      stride = kPanel;
      return;
    }
    at = memory;
    stride = kGroup;
    for (int i = 0; i < features * kGroup; ++i) memory[i] = 0.f;
    for (int f = 0; f < features; ++f) copy_tokens(from, width, column + f, first, count, memory + f * kGroup);
  }
};

// The columns that `own` tokens from `first` on need with `others` from `other` on, and their products.
class Products {
 public:
  Products(const RelativeTerm& t, int first, int own, int other, int others, float* memory) : t_(t), memory_(memory) {
    I32 smallest = set(INT32_MAX), largest = set(-1);
    for (int i = first; i < first + own; ++i) {
      const int32_t* index = row_of(t, i) + other;
      int j = 0;
      for (; j + kLanes <= others; j += kLanes) {
        smallest = min(smallest, load(index + j));
        largest = max(largest, load(index + j));
      }
      for (; j < others; ++j) widen(index[j], index[j]);
    }
    int32_t lows[kLanes], highs[kLanes];
    store(lows, smallest);
    store(highs, largest);
    for (int lane = 0; lane < kLanes; ++lane) widen(lows[lane], highs[lane]);
    low_ = low_ / (2 * kLanes) * (2 * kLanes);
    // A load of neighbours may begin at the last.
    stride_ = static_cast<size_t>(padded_to(high_ - low_ + 1, 2 * kLanes) + kLanes);
  }

  static const int32_t* row_of(const RelativeTerm& t, int own) { return t.index + static_cast<size_t>(own) * t.index_stride; }

  void multiply(const TokenBlock& x, int count, int head_dim) const {
    const F32 factor = set(t_.factor);
    const bool rounded = t_.rounding.scale != 0.f;
    const Rounder rounding(t_.rounding);
    for (int column = low_; column <= high_; column += 2 * kLanes)
      for_tiles<float>(padded_to(count, kTileStep), [&](auto tile, int begin) {
        tile.multiply(x.at + begin, x.stride, columns(column, head_dim), kTableColumns, head_dim, [&](int m, int i, F32 sum) {
          if (rounded) sum = rounding(sum);
          store(memory_ + static_cast<size_t>(begin + m) * stride_ + (column - low_) + i * kLanes, mul(sum, factor));
        });
      });
  }

  float one(int token, int32_t column) const { return row(token)[column]; }
  // Of kLanes other tokens.
  OBERT_INLINE F32 several(int token, const int32_t* index) const {
    const int32_t first = index[0], last = index[kLanes - 1], base = first < last ? first : last;
    const I32 lanes = add(load(index), set(-base));
    if (are_lanes(lanes)) return pick(load(row(token) + base), lanes);
    float each[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) each[lane] = one(token, index[lane]);
    return load(each);
  }

 private:
  void widen(int32_t low, int32_t high) {
    low_ = low < low_ ? low : low_;
    high_ = high > high_ ? high : high_;
  }
  const float* columns(int from, int head_dim) const {
    return t_.table + static_cast<size_t>(from / kTableColumns * head_dim) * kTableColumns + from % kTableColumns;
  }
  const float* row(int token) const { return memory_ + static_cast<size_t>(token) * stride_ - low_; }

  const RelativeTerm t_;
  float* const memory_;
  size_t stride_;
  int32_t low_ = INT32_MAX, high_ = -1;
};

class RelativeRows {
 public:
  explicit RelativeRows(const RelativeScores& r)
      : r_(r), block_(static_cast<float*>(r.scratch)), products_(block_ + r.head_dim * kGroup) {}

  void begin() const {
    for (int query = r_.query_begin; query < r_.query_end; ++query) {
      const float* mask = r_.mask ? r_.mask + static_cast<size_t>(query) * r_.mask_stride : nullptr;
      for (int key = 0; key < r_.length; ++key) row(query)[key] = mask ? mask[key] : 0.f;
    }
  }

  void add_by_query(int query) const {
    const RelativeTerm& t = r_.by_query;
    const int count = least(kGroup, r_.query_end - query);
    const Products products(t, query, count, 0, r_.length, products_);
    products.multiply(TokenBlock(r_.q, r_.q_width, r_.q_column, r_.head_dim, r_.first_query + static_cast<size_t>(query), count, block_),
                      count, r_.head_dim);
    for (int i = 0; i < count; ++i) {
      const int32_t* index = Products::row_of(t, query + i);
      float* to = row(query + i);
      int key = 0;
      for (; key + kLanes <= r_.length; key += kLanes) store(to + key, add(load(to + key), products.several(i, index + key)));
      for (; key < r_.length; ++key) to[key] += products.one(i, index[key]);
    }
  }

  void add_by_key(int key) const {
    const RelativeTerm& t = r_.by_key;
    const int count = least(kGroup, r_.length - key);
    const Products products(t, key, count, r_.query_begin, r_.query_end - r_.query_begin, products_);
    products.multiply(TokenBlock(r_.k, r_.k_width, r_.k_column, r_.head_dim, r_.first + static_cast<size_t>(key), count, block_), count,
                      r_.head_dim);
    for (int i = 0; i < count; i += kLanes) {
      int query = r_.query_begin;
      for (; i + kLanes <= count && query + kLanes <= r_.query_end; query += kLanes) {
        I32 square[kLanes];
        for (int lane = 0; lane < kLanes; ++lane)
          square[lane] = as_int(products.several(i + lane, Products::row_of(t, key + i + lane) + query));
        transpose(square);
        for (int lane = 0; lane < kLanes; ++lane) {
          float* to = row(query + lane) + key + i;
          store(to, add(load(to), as_float(square[lane])));
        }
      }
      for (; query < r_.query_end; ++query)
        for (int j = i; j < least(i + kLanes, count); ++j) row(query)[key + j] += products.one(j, Products::row_of(t, key + j)[query]);
    }
  }

 private:
  float* row(int query) const { return r_.out + static_cast<size_t>(query - r_.query_begin) * static_cast<size_t>(r_.length); }

  const RelativeScores r_;
  float *const block_, *const products_;
};

void relative_scores(const RelativeScores& r) {
  const RelativeRows rows(r);
  rows.begin();
  for (int query = r.query_begin; r.by_query.table && query < r.query_end; query += kGroup) rows.add_by_query(query);
  for (int key = 0; r.by_key.table && key < r.length; key += kGroup) rows.add_by_key(key);
}

size_t relative_scratch(int positions, int head_dim) {
  return static_cast<size_t>(head_dim + padded_to(positions, kTableColumns) + kLanes) * kGroup * sizeof(float);
}

}  // namespace
}  // namespace obert
