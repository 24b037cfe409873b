// Epilogue of the products: scale, bias, activation, residual, gate, quantisation. Include after gelu.h and quantize.h.
//
// Four rows at a time, because four quantised rows make one dword row of the next product's input.
// Bound by the multiply pipes: conversion 1, scale 1, GELU 18 (with lookups 8 there and 10 elsewhere),
// quantisation 5 instructions a vector; memory is read and written once.
#pragma once

namespace obert {
namespace {

// A choice that a generic lambda is compiled with. Not of std: see README.md, "One definition".
template <bool Value>
struct Choice {
  static constexpr bool kValue = Value;
};

template <Activation A>
inline F32 activate(F32 x) {
  switch (A) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return max(set(0.f), x);
    case Activation::kGeluErf: {
      F32 one[1] = {x};
      gelu_erf(one);
      return one[0];
    }
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kGeluSigmoid:
      return gelu_sigmoid(x);
    case Activation::kSilu:
      return silu(x);
    case Activation::kTanh:
      return tanh(x);
  }
  return x;
}

// Of one vector of four rows each.
template <Activation A>
OBERT_INLINE void activate_block(F32 (&x)[kBlock]) {
  if constexpr (A != Activation::kGeluErf) {
    for (F32& one : x) one = activate<A>(one);
  } else if constexpr (kFastLookup) {
    F32 first[2] = {x[0], x[1]}, second[2] = {x[2], x[3]};
    gelu_erf(first);
    gelu_erf(second);
    x[0] = first[0], x[1] = first[1], x[2] = second[0], x[3] = second[1];
  } else {
    gelu_erf(x);
  }
}

inline F32 accumulated(const int32_t* p) { return to_float(load(p)); }
inline F32 accumulated(const float* p) { return load(p); }

// `Rounded`: graphs that quantise between a product and its bias or behind it.
template <class T, Activation A, bool Rounded>
void finish_rows(const Epilogue& e, const T* acc, int groups, int row_begin, int row_end) {
  const int tokens = groups * kGroup;
  const Quantizer quantize(e.inverse_scale, e.zero_point);
  const Rounder rounding(e.rounding), shift_rounding(e.shift_rounding), out_rounding(e.out_rounding);
  // Copies: a store of vectors may alias `e`, which would be read again for each.
  const float *const residual = e.residual, *const factor = e.factor;
  float* const out = e.out;
  const bool rounds = e.rounding.scale != 0.f, shift_rounds = e.shift_rounding.scale != 0.f, out_rounds = e.out_rounding.scale != 0.f;
  for (int r = row_begin; r < row_end; r += kBlock) {
    const int count = row_end - r < kBlock ? row_end - r : kBlock;
    F32 scale[kBlock], bias[kBlock], shift[kBlock];   // without `= {}`, for which GCC 12 calls on `rep stos`, 30 cycles each
    for (int i = 0; i < kBlock; ++i) {
      scale[i] = set(e.scale && i < count ? e.scale[r + i] : 1.f);
      bias[i] = set(e.bias && i < count ? e.bias[r + i] : 0.f);
      if constexpr (Rounded) shift[i] = set(e.shift && i < count ? e.shift[r + i] : 0.f);
    }
    const auto before = [&](int i, int t) {
      F32 y = fma(accumulated(acc + static_cast<size_t>(r - row_begin + i) * kPanel + t), scale[i], bias[i]);
      if constexpr (Rounded) {
        if (rounds) y = rounding(y);
        y = add(y, shift[i]);
        if (shift_rounds) y = shift_rounding(y);
      }
      return y;
    };
    // `alone`: neither residual nor factor, nothing to round and no floats to leave.
    const auto after = [&](F32 y, int i, int t, auto alone) {
      if constexpr (decltype(alone)::kValue) return y;
      const size_t at = static_cast<size_t>(r + i) * kPanel + t;
      if (residual) y = add(y, load(residual + at));
      if (factor) y = mul(y, load(factor + at));
      if constexpr (Rounded)
        if (out_rounds) y = out_rounding(y);
      if (out) store(out + at, y);
      return y;
    };
    const auto finish = [&](int i, int t) { return after(activate<A>(before(i, t)), i, t, Choice<false>()); };
    if (!e.quantized) {
      for (int i = 0; i < count; ++i)
        for (int t = 0; t < tokens; t += kLanes) finish(i, t);
      continue;
    }
    int32_t* packed = reinterpret_cast<int32_t*>(e.quantized) + static_cast<size_t>(r / kBlock) * kPanel;
    const auto four_rows = [&](auto alone) {
      for (int t = 0; t < tokens; t += kLanes) {
        F32 y[kBlock];
        for (int i = 0; i < kBlock; ++i) y[i] = before(i, t);
        activate_block<A>(y);
        I32 q[kBlock];
        for (int i = 0; i < kBlock; ++i) q[i] = quantize(after(y[i], i, t, alone));
        store(packed + t, quantize.pack(q[0], q[1], q[2], q[3]));
      }
    };
    if (count == kBlock) {
      // What most are: a dozen branches less, which cost as much as all the rest.
      if (!Rounded && !residual && !factor && !out) four_rows(Choice<true>());
      else four_rows(Choice<false>());
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
  if (e.rounding.scale != 0.f || e.shift || e.shift_rounding.scale != 0.f || e.out_rounding.scale != 0.f)
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
    case Activation::kGeluSigmoid:
      return finish_with<T, Activation::kGeluSigmoid>(e, acc, groups, row_begin, row_end);
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
