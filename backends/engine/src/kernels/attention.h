// Attention of one head over one sequence, queries in lanes. Include after finish.h.
//
// Both products are the same tile: rows of `a` are broadcast element by element against vectors of
// `b`, so that no shuffle and no horizontal sum occurs, and softmax reduces along memory.
//   scores [keys][queries]     a = k [d][keys],    b = q [d][queries]
//   y      [d][queries]        a = v [keys][d],    b = p [keys][queries]
// A tile of kTile x 2 vectors keeps the multiply pipes busy (2 loads and kTile broadcasts for
// 2 kTile multiplications) and fits the registers. Queries go in blocks of 2 kLanes; their scores
// over all keys stay in the first- or second-level cache.
#pragma once

namespace obert {
namespace {

constexpr int kTile = kRegisters == 32 ? 12 : 6;
constexpr int kTileStep = kRegisters == 32 ? 4 : 2;     // smaller tiles are multiples of this
constexpr int kQueries = 2 * kLanes;

inline int padded_to(int n, int step) { return (n + step - 1) / step * step; }
inline int least(int a, int b) { return a < b ? a : b; }

// Where feature `column` of token `t` is in a buffer of panels.
inline size_t panel_offset(size_t t, int width, int column) {
  return (t / kPanel * static_cast<size_t>(width) + static_cast<size_t>(column)) * kPanel + t % kPanel;
}

// to[0 .. count) = the tokens first .. first + count of one feature.
inline void copy_tokens(const float* from, int width, int column, size_t first, int count, float* to) {
  for (int done = 0; done < count;) {
    const size_t t = first + static_cast<size_t>(done);
    const int run = least(count - done, kPanel - static_cast<int>(t % kPanel));
    const float* source = from + panel_offset(t, width, column);
    int i = 0;
    for (; i + kLanes <= run; i += kLanes) store(to + done + i, load(source + i));
    if (i < run) store_first(to + done + i, load_first(source + i, run - i), run - i);
    done += run;
  }
}

template <int M> struct Tile {
  static constexpr int kRows = M;
  F32 sum[M][2];
  void multiply(const float* a, size_t stride, const float* b, int depth) {
    for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = set(0.f);
    for (int i = 0; i < depth; ++i, a += stride, b += kQueries) {
      const F32 b0 = load(b), b1 = load(b + kLanes);
      for (int m = 0; m < M; ++m) {
        const F32 w = set(a[m]);
        sum[m][0] = fma(w, b0, sum[m][0]);
        sum[m][1] = fma(w, b1, sum[m][1]);
      }
    }
  }
};

// Calls run(tile, begin) for tiles that cover 0 .. count, a multiple of kTileStep.
template <class Run> inline void for_tiles(int count, const Run& run) {
  int i = 0;
  for (; i + kTile <= count; i += kTile) run(Tile<kTile>(), i);
  if constexpr (kTile == 12) {
    if (i + 8 <= count) { run(Tile<8>(), i); i += 8; }
    if (i + 4 <= count) run(Tile<4>(), i);
  } else {
    if (i + 4 <= count) { run(Tile<4>(), i); i += 4; }
    if (i + 2 <= count) run(Tile<2>(), i);
  }
}

struct AttentionScratch {
  size_t k_stride, v_stride, k, v, q, scores, mask, y, floats;
  AttentionScratch(int length, int head_dim) {
    const size_t keys = static_cast<size_t>(padded_to(length, kTileStep)), d = static_cast<size_t>(padded_to(head_dim, kTileStep));
    k_stride = keys + 16;     // rows a multiple of 4 KB apart would share cache sets
    v_stride = d + 16;
    size_t at = 0;
    const auto take = [&](size_t n) { const size_t here = at; at += (n + 15) / 16 * 16; return here; };
    k = take(k_stride * static_cast<size_t>(head_dim));
    v = take(v_stride * static_cast<size_t>(padded_to(length, kLanes)) + kLanes);
    q = take(static_cast<size_t>(head_dim) * kQueries);
    scores = take(keys * kQueries);
    mask = take(keys * kQueries);
    y = take(d * kQueries);
    floats = at;
  }
};

// Values [d][tokens] become [tokens][d].
inline void transpose_values(const Attention& a, const AttentionScratch& s, float* v) {
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
      // Lanes past `width` are zero and reach at most into the gap between rows, or the next row,
      // which is written afterwards.
      for (int i = 0; i < count; ++i) store(v + static_cast<size_t>(k + i) * s.v_stride + d, as_float(square[i]));
    }
  }
}

// [keys][kQueries] of additive mask, for masks that differ between queries.
inline void transpose_mask(const Attention& a, int query, float* mask) {
  const int count = least(kQueries, a.query_end - query);
  for (int k = 0; k < a.length; k += kLanes) {
    const int width = least(kLanes, a.length - k);
    for (int half = 0; half < kQueries; half += kLanes) {
      I32 square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        if (half + i < count) square[i] = as_int(load_first(a.mask + static_cast<size_t>(query + half + i) * a.mask_stride + k, width));
        else square[i] = set(0);
      }
      transpose(square);
      for (int i = 0; i < width; ++i) store(mask + static_cast<size_t>(k + i) * kQueries + half, as_float(square[i]));
    }
  }
}

// Writes [rows][kQueries] of y for `count` queries; sequences may begin inside a panel, and lanes of
// other tokens are not ours to touch.
template <class T> inline void put_row(const T* from, int count, size_t first, int width, int row, T* to) {
  for (int done = 0; done < count;) {
    const size_t t = first + static_cast<size_t>(done);
    const int run = least(least(kLanes, count - done), kPanel - static_cast<int>(t % kPanel));
    T* out = to + panel_offset(t, width, row);
    if (run == kLanes) store(out, load(from + done));
    else store_first(out, load_first(from + done, run), run);
    done += run;
  }
}

inline void put_queries(const Attention& a, const float* y, int query) {
  const int count = least(kQueries, a.query_end - query);
  const size_t first = a.first + static_cast<size_t>(query);
  if (a.out)
    for (int d = 0; d < a.head_dim; ++d) put_row(y + d * kQueries, count, first, a.out_width, a.out_column + d, a.out);
  if (!a.quantized) return;
  const Quantizer quantize(a.inverse_scale, a.zero_point);
  for (int d = 0; d < a.head_dim; d += kBlock) {
    alignas(64) int32_t packed[kQueries];
    for (int v = 0; v < kQueries; v += kLanes) {
      const float* p = y + d * kQueries + v;
      const I32 q0 = quantize(load(p)), q1 = quantize(load(p + kQueries));
      const I32 q2 = quantize(load(p + 2 * kQueries)), q3 = quantize(load(p + 3 * kQueries));
      store(packed + v, bit_or(bit_or(q0, shift_left<8>(q1)), bit_or(shift_left<16>(q2), shift_left<24>(q3))));
    }
    put_row(packed, count, first, a.out_width / kBlock, (a.out_column + d) / kBlock, reinterpret_cast<int32_t*>(a.quantized));
  }
}

void attention(const Attention& a) {
  const AttentionScratch s(a.length, a.head_dim);
  float* memory = static_cast<float*>(a.scratch);
  float *k = memory + s.k, *v = memory + s.v, *q = memory + s.q, *scores = memory + s.scores, *y = memory + s.y;
  float* mask = memory + s.mask;
  const int keys = padded_to(a.length, kTileStep), features = padded_to(a.head_dim, kTileStep);

  for (int d = 0; d < a.head_dim; ++d) {
    float* row = k + static_cast<size_t>(d) * s.k_stride;
    copy_tokens(a.k, a.k_width, a.k_column + d, a.first, a.length, row);
    for (int i = a.length; i < keys; ++i) row[i] = 0.f;
  }
  transpose_values(a, s, v);

  for (int query = a.query_begin; query < a.query_end; query += kQueries) {
    const int count = least(kQueries, a.query_end - query);
    for (int d = 0; d < a.head_dim; ++d) {
      copy_tokens(a.q, a.q_width, a.q_column + d, a.first + static_cast<size_t>(query), count, q + d * kQueries);
      for (int i = count; i < kQueries; ++i) q[d * kQueries + i] = 0.f;
    }
    const bool each = a.mask && a.mask_stride;
    if (each) transpose_mask(a, query, mask);

    const F32 scale = set(a.scale);
    F32 top[2] = {set(-__builtin_inff()), set(-__builtin_inff())};
    for_tiles(keys, [&](auto tile, int begin) {
      tile.multiply(k + begin, s.k_stride, q, a.head_dim);
      for (int m = 0; m < tile.kRows; ++m) {
        if (begin + m >= a.length) break;
        for (int i = 0; i < 2; ++i) {
          F32 x = mul(tile.sum[m][i], scale);
          if (each) x = add(x, load(mask + static_cast<size_t>(begin + m) * kQueries + i * kLanes));
          else if (a.mask) x = add(x, set(a.mask[begin + m]));
          top[i] = max(top[i], x);
          store(scores + static_cast<size_t>(begin + m) * kQueries + i * kLanes, x);
        }
      }
    });

    F32 total[2] = {set(0.f), set(0.f)};
    for (int key = 0; key < a.length; ++key) {
      for (int i = 0; i < 2; ++i) {
        float* at = scores + static_cast<size_t>(key) * kQueries + i * kLanes;
        const F32 p = exp(sub(load(at), top[i]));
        total[i] = add(total[i], p);
        store(at, p);
      }
    }

    const F32 share[2] = {div(set(1.f), total[0]), div(set(1.f), total[1])};
    for_tiles(features, [&](auto tile, int begin) {
      tile.multiply(v + begin, s.v_stride, scores, a.length);
      for (int m = 0; m < tile.kRows; ++m)
        for (int i = 0; i < 2; ++i) store(y + (begin + m) * kQueries + i * kLanes, mul(tile.sum[m][i], share[i]));
    });
    put_queries(a, y, query);
  }
}

size_t attention_scratch(int length, int head_dim) { return AttentionScratch(length, head_dim).floats * sizeof(float); }

}  // namespace
}  // namespace obert
