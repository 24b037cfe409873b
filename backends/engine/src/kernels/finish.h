// Epilogue of the products: scale, bias, activation, residual, gate, quantisation. Include after maths.h.
//
// Four rows at a time, because four quantised rows make one dword row of the next product's input.
// Bound by the two multiply pipes: conversion 1, scale 1, GELU 18, quantisation 5
// instructions a vector; memory is read and written once.
#pragma once

namespace obert {
namespace {

template <Activation A>
inline F32 activate(F32 x) {
  switch (A) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return max(set(0.f), x);
    case Activation::kGeluErf:
      return gelu_erf(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kSilu:
      return silu(x);
    case Activation::kTanh:
      return tanh(x);
  }
  return x;
}

// Bytes clamp(round(y * inverse_scale) + zero_point). The saturation of pack_bytes is the clamp; only
// what is too large for an int32 is cut off before. NaN becomes 0.
struct Quantizer {
  F32 inverse_scale, high, low;
  I32 zero_point;
  Quantizer(float inverse, int zero)
      : inverse_scale(set(inverse)),
        high(set(static_cast<float>(255 - zero))),
        low(set(static_cast<float>(-zero))),
        zero_point(set(static_cast<int32_t>(zero | zero << 16))) {}
  I32 operator()(F32 y) const {
    y = min(high, mul(y, inverse_scale));
    if (!kNanRoundsLow) y = max(y, low);
    return round(y);
  }
  // The dwords of four features; 0 stands for the zero point.
  I32 pack(I32 q0, I32 q1, I32 q2, I32 q3) const { return pack_bytes(q0, q1, q2, q3, zero_point); }
};

// Quantises and dequantises.
struct Rounder {
  F32 inverse_scale, scale, low, high;
  explicit Rounder(const Rounding& r)
      : inverse_scale(set(r.scale == 0.f ? 0.f : 1.f / r.scale)),
        scale(set(r.scale)),
        low(set(static_cast<float>(-r.zero_point))),
        high(set(static_cast<float>(255 - r.zero_point))) {}
  F32 operator()(F32 x) const {
    return mul(to_float(round(min(max(mul(x, inverse_scale), low), high))), scale);
  }
};

inline F32 accumulated(const int32_t* p) { return to_float(load(p)); }
inline F32 accumulated(const float* p) { return load(p); }

// `Rounded`: graphs that quantise between a product and its bias or behind it.
template <class T, Activation A, bool Rounded>
void finish_rows(const Epilogue& e, const T* acc, int groups, int row_begin, int row_end) {
  const int tokens = groups * kGroup;
  const Quantizer quantize(e.inverse_scale, e.zero_point);
  const Rounder rounding(e.rounding), out_rounding(e.out_rounding);
  const bool rounds = e.rounding.scale != 0.f, out_rounds = e.out_rounding.scale != 0.f;
  for (int r = row_begin; r < row_end; r += kBlock) {
    const int count = row_end - r < kBlock ? row_end - r : kBlock;
    F32 scale[kBlock] = {}, bias[kBlock] = {};
    for (int i = 0; i < count; ++i) {
      scale[i] = set(e.scale ? e.scale[r + i] : 1.f);
      bias[i] = set(e.bias ? e.bias[r + i] : 0.f);
    }
    const auto finish = [&](int i, int t) {
      F32 y = fma(accumulated(acc + static_cast<size_t>(r - row_begin + i) * kPanel + t), scale[i], bias[i]);
      if constexpr (Rounded) {
        if (rounds) y = rounding(y);
        if (e.shift) y = add(y, set(e.shift[r + i]));
      }
      y = activate<A>(y);
      const size_t at = static_cast<size_t>(r + i) * kPanel + t;
      if (e.residual) y = add(y, load(e.residual + at));
      if (e.factor) y = mul(y, load(e.factor + at));
      if constexpr (Rounded)
        if (out_rounds) y = out_rounding(y);
      if (e.out) store(e.out + at, y);
      return y;
    };
    if (!e.quantized) {
      for (int i = 0; i < count; ++i)
        for (int t = 0; t < tokens; t += kLanes) finish(i, t);
      continue;
    }
    int32_t* packed = reinterpret_cast<int32_t*>(e.quantized) + static_cast<size_t>(r / kBlock) * kPanel;
    if (count == kBlock) {
      for (int t = 0; t < tokens; t += kLanes) {
        const I32 q0 = quantize(finish(0, t)), q1 = quantize(finish(1, t));
        const I32 q2 = quantize(finish(2, t)), q3 = quantize(finish(3, t));
        store(packed + t, quantize.pack(q0, q1, q2, q3));
      }
    } else {
      for (int t = 0; t < tokens; t += kLanes) {
        I32 q[kBlock];
        for (int i = 0; i < kBlock; ++i) q[i] = i < count ? quantize(finish(i, t)) : set(0);
        store(packed + t, quantize.pack(q[0], q[1], q[2], q[3]));
      }
    }
  }
}

template <class T, Activation A>
void finish_with(const Epilogue& e, const T* acc, int groups, int row_begin, int row_end) {
  if (e.rounding.scale != 0.f || e.shift || e.out_rounding.scale != 0.f)
    finish_rows<T, A, true>(e, acc, groups, row_begin, row_end);
  else finish_rows<T, A, false>(e, acc, groups, row_begin, row_end);
}

template <class T>
void finish(const Epilogue& e, const T* acc, int groups, int row_begin, int row_end) {
  switch (e.activation) {
    case Activation::kNone:
      return finish_with<T, Activation::kNone>(e, acc, groups, row_begin, row_end);
    case Activation::kRelu:
      return finish_with<T, Activation::kRelu>(e, acc, groups, row_begin, row_end);
    case Activation::kGeluErf:
      return finish_with<T, Activation::kGeluErf>(e, acc, groups, row_begin, row_end);
    case Activation::kGeluTanh:
      return finish_with<T, Activation::kGeluTanh>(e, acc, groups, row_begin, row_end);
    case Activation::kSilu:
      return finish_with<T, Activation::kSilu>(e, acc, groups, row_begin, row_end);
    case Activation::kTanh:
      return finish_with<T, Activation::kTanh>(e, acc, groups, row_begin, row_end);
  }
}

void finish_int8(const Epilogue& e, const int32_t* acc, int groups, int row_begin, int row_end) {
  finish(e, acc, groups, row_begin, row_end);
}
void finish_float(const Epilogue& e, const float* acc, int groups, int row_begin, int row_end) {
  finish(e, acc, groups, row_begin, row_end);
}

}  // namespace
}  // namespace obert
