// What attention.h needs to move: heads out of and into buffers of panels, where sequences begin
// anywhere. Include after quantize.h and prefetch.h.
#pragma once

namespace obert {
namespace {

constexpr int kTile = kRegisters == 32 ? 12 : 6;
constexpr int kTileStep = kRegisters == 32 ? 4 : 2;  // smaller tiles are multiples of this
constexpr int kQueries = 2 * kLanes;

inline int padded_to(int n, int step) { return (n + step - 1) / step * step; }
inline int least(int a, int b) { return a < b ? a : b; }

// Where feature `column` of token `t` is in a buffer of panels.
inline size_t panel_offset(size_t t, int width, int column) {
  return (t / kPanel * static_cast<size_t>(width) + static_cast<size_t>(column)) * kPanel + t % kPanel;
}

// Asks for `features` rows of the tokens t .. t + count, which lie lines apart, where no processor foresees them. Always
// inlined, as what calls it: GCC 12 drops calls of functions that do nothing but prefetch.
OBERT_INLINE void prefetch_tokens(const float* x, int width, int column, int features, size_t t, int count) {
  const float* at = x + panel_offset(t, width, column);
  for (int f = 0; f < features; ++f)
    prefetch<3>(at, static_cast<size_t>(f) * kPanel * sizeof(float), static_cast<size_t>(count) * sizeof(float));
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

// Some features of up to kLanes tokens, a vector each, `stride` floats apart: where they lie, or in `memory`
// [padded][kLanes] with zeros in place of what the head or the sequence does not have.
struct FeatureRows {
  const float* at;
  size_t stride;

  FeatureRows(const float* from, int width, int column, int features, int padded, size_t first, int count, float* memory)
      : at(memory), stride(kLanes) {
    if (features >= padded && count >= kLanes && first % kPanel <= kPanel - kLanes) {
      at = from + panel_offset(first, width, column);
      stride = kPanel;
      return;
    }
    for (int i = 0; i < padded * kLanes; ++i) memory[i] = 0.f;
    if (count <= 0) return;
    for (int f = 0; f < least(features, padded); ++f)
      copy_tokens(from, width, column + f, first, least(count, kLanes), memory + f * kLanes);
  }
  OBERT_INLINE F32 operator()(int f) const { return load(at + static_cast<size_t>(f) * stride); }
};

struct AttentionScratch {
  size_t k_stride, v_stride, k, v, q, scores, mask, y, floats;
  AttentionScratch(int length, int head_dim) {
    const size_t keys = static_cast<size_t>(padded_to(length, kTileStep)),
                 d = static_cast<size_t>(padded_to(head_dim, kTileStep));
    k_stride = keys + 16;  // rows a multiple of 4 KB apart would share cache sets
    v_stride = d + 16;
    size_t at = 0;
    const auto take = [&](size_t n) {
      const size_t here = at;
      at += (n + 15) / 16 * 16;
      return here;
    };
    k = take(k_stride * static_cast<size_t>(head_dim));
    v = take(v_stride * static_cast<size_t>(padded_to(length, kLanes)) + kLanes);
    q = take(static_cast<size_t>(head_dim) * kQueries);
    scores = take(keys * kQueries);
    mask = take(keys * kQueries);
    y = take(d * kQueries);
    floats = at;
  }
};

// [keys][kQueries] of additive mask, for masks that differ between queries.
inline void transpose_mask(const Attention& a, int query, float* mask) {
  const int count = least(kQueries, a.query_end - query);
  for (int k = 0; k < a.length; k += kLanes) {
    const int width = least(kLanes, a.length - k);
    for (int half = 0; half < kQueries; half += kLanes) {
      I32 square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        if (half + i < count)
          square[i] =
              as_int(load_first(a.mask + static_cast<size_t>(query + half + i) * a.mask_stride + k, width));
        else square[i] = set(0);
      }
      transpose(square);
      for (int i = 0; i < width; ++i)
        store(mask + static_cast<size_t>(k + i) * kQueries + half, as_float(square[i]));
    }
  }
}

// The numbers of four features that a dword of codes stands for; `minus_zero` is the zero point, negated.
OBERT_INLINE void unpack_codes(I32 dword, I32 minus_zero, I32 (&number)[kBlock]) {
  const I32 byte = set(255);
  number[0] = add(bit_and(dword, byte), minus_zero);
  number[1] = add(bit_and(shift_right<8>(dword), byte), minus_zero);
  number[2] = add(bit_and(shift_right<16>(dword), byte), minus_zero);
  number[3] = add(shift_right<24>(dword), minus_zero);
}

// Writes [rows][kQueries] of y for `count` queries; sequences may begin inside a panel, and lanes of
// other tokens are not ours to touch.
template <class T>
inline void put_row(const T* from, int count, size_t first, int width, int row, T* to) {
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
  const size_t first = a.first_query + static_cast<size_t>(query);
  if (a.out)
    for (int d = 0; d < a.head_dim; ++d)
      put_row(y + d * kQueries, count, first, a.out_width, a.out_column + d, a.out);
  if (!a.quantized) return;
  const Quantizer quantize(a.inverse_scale, a.zero_point);
  for (int d = 0; d < a.head_dim; d += kBlock) {
    alignas(64) int32_t packed[kQueries];
    for (int v = 0; v < kQueries; v += kLanes) {
      const float* p = y + d * kQueries + v;
      const I32 q0 = quantize(load(p)), q1 = quantize(load(p + kQueries));
      const I32 q2 = quantize(load(p + 2 * kQueries)), q3 = quantize(load(p + 3 * kQueries));
      store(packed + v, quantize.pack(q0, q1, q2, q3));
    }
    put_row(packed, count, first, a.quantized_width / kBlock, (a.out_column + d) / kBlock,
            reinterpret_cast<int32_t*>(a.quantized));
  }
}

}  // namespace
}  // namespace obert
