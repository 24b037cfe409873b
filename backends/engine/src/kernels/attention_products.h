// Sums of products, a tile of them in registers: rows of one operand are broadcast element by element against vectors of
// the other. Of floats, or of 16-bit integers two to a dword, where there is `dot2`: twice as many at once.
#pragma once

namespace obert {
namespace {

inline I32 join(I32 low, I32 high) { return bit_or(bit_and(low, set(0xffff)), shift_left<16>(high)); }

inline F32 multiply_add(F32 sum, F32 a, F32 b) { return fma(a, b, sum); }
inline I32 multiply_add(I32 sum, I32 a, I32 b) { return dot2(sum, a, b); }
inline F32 zero_like(float) { return set(0.f); }
inline I32 zero_like(int32_t) { return set(0); }
inline F32 as_floats(F32 a) { return a; }
inline F32 as_floats(I32 a) { return to_float(a); }

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
  // Each row with an element in all its lanes.
  OBERT_INLINE void begin(const Element* at) {
    left = right = set(*at);
    rest.begin(at + 1);
  }
  // Elements of `a` that go to one row and to the next lie `Step` apart.
  template <int Step>
  OBERT_INLINE void add(const Element* a, Vector b0, Vector b1) {
    const Vector w = set(*a);
    left = multiply_add(left, w, b0);
    right = multiply_add(right, w, b1);
    rest.template add<Step>(a + Step, b0, b1);
  }
  template <int Step>
  OBERT_INLINE void add_all(const Element* a, size_t a_stride, const Element* b, size_t b_stride, int depth) {
    for (int i = 0; i < depth; ++i, a += a_stride, b += b_stride) add<Step>(a, load(b), load(b + kLanes));
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
  OBERT_INLINE void begin(const Element*) {}
  template <int Step>
  OBERT_INLINE void add(const Element*, Vector, Vector) {}
  template <class Put>
  OBERT_INLINE void for_each(int, const Put&) const {}
};

template <class Element, int M>
struct Tile {
  static constexpr int kRows = M;

  // Calls put(m, i, sum) with vector i of row m of the product.
  template <class Put>
  static void multiply(const Element* a, size_t a_stride, const Element* b, size_t b_stride, int depth, const Put& put) {
    Rows<Element, M> rows;
    rows.clear();
    rows.template add_all<1>(a, a_stride, b, b_stride, depth);
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

}  // namespace
}  // namespace obert
