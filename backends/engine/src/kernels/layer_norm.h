// Layer normalisation along memory, tokens in lanes: no shuffle anywhere. Include after finish.h.
//
// Mean first, then the variance of x - mean, then the output: the second sum of two passes does not
// cancel as E[x^2] - mean^2 would. A panel of 768 features is 192 KB, so that the passes read the
// second-level cache; one vector of tokens at a time would stride through it, hence all lanes of
// the panel in step.
#pragma once

namespace obert {
namespace {

// `n` is a copy: of what its address is known the compiler would have to read anew after every store.
template <int V, bool Residual>
void layer_norm_vectors(const LayerNorm n) {
  // With a residual and a place for the output, the first pass leaves the sums there.
  const bool keep = Residual && n.out;
  const auto first_value = [&](int f, int v) {
    const size_t at = static_cast<size_t>(f) * kPanel + static_cast<size_t>(v) * kLanes;
    return Residual ? add(load(n.x + at), load(n.residual + at)) : load(n.x + at);
  };
  const auto value = [&](int f, int v) {
    return keep ? load(n.out + static_cast<size_t>(f) * kPanel + static_cast<size_t>(v) * kLanes)
                : first_value(f, v);
  };
  const F32 share = set(1.f / static_cast<float>(n.features));
  F32 mean[V], inverse[V];
  {
    F32 sum[V];
    for (int v = 0; v < V; ++v) sum[v] = set(0.f);
    for (int f = 0; f < n.features; ++f)
      for (int v = 0; v < V; ++v) {
        const F32 x = first_value(f, v);
        if (keep) store(n.out + static_cast<size_t>(f) * kPanel + v * kLanes, x);
        sum[v] = add(sum[v], x);
      }
    for (int v = 0; v < V; ++v) mean[v] = n.centred ? mul(sum[v], share) : set(0.f);
  }
  {
    F32 sum[V];
    for (int v = 0; v < V; ++v) sum[v] = set(0.f);
    for (int f = 0; f < n.features; ++f)
      for (int v = 0; v < V; ++v) {
        const F32 d = sub(value(f, v), mean[v]);
        sum[v] = fma(d, d, sum[v]);
      }
    for (int v = 0; v < V; ++v) inverse[v] = div(set(1.f), sqrt(fma(sum[v], share, set(n.epsilon))));
  }
  const Quantizer quantize(n.inverse_scale, n.zero_point);
  const F32 out_scale = set(n.out_scale);
  const bool rounds = n.out_scale > 0.f, usual = n.beta && n.out && n.quantized && !rounds;
  // `usual`: four features, beta, both results.
  const auto write_block = [&](int f, int count, auto is_usual) {
    constexpr bool all = decltype(is_usual)::kValue;
    for (int v = 0; v < V; ++v) {
      I32 q[kBlock];
      for (int i = 0; i < kBlock; ++i) {
        q[i] = set(0);
        if (!all && i >= count) continue;
        const F32 scale = mul(inverse[v], set(n.gamma[f + i]));
        const F32 y = fma(sub(value(f + i, v), mean[v]), scale, set(all || n.beta ? n.beta[f + i] : 0.f));
        const size_t at = static_cast<size_t>(f + i) * kPanel + static_cast<size_t>(v) * kLanes;
        if (!all && rounds) {
          q[i] = quantize.code(y);
          store(n.out + at, mul(to_float(q[i]), out_scale));
          continue;
        }
        if (all || n.out) store(n.out + at, y);
        if (all || n.quantized) q[i] = quantize(y);
      }
      if (!all && !n.quantized) continue;
      int32_t* packed = reinterpret_cast<int32_t*>(n.quantized) + static_cast<size_t>(f / kBlock) * kPanel;
      store(packed + v * kLanes, quantize.pack(q[0], q[1], q[2], q[3]));
    }
  };
  for (int f = 0; f < n.features; f += kBlock) {
    if (usual && f + kBlock <= n.features) write_block(f, kBlock, Choice<true>());
    else write_block(f, n.features - f, Choice<false>());
  }
}

template <int Groups>
void layer_norm_groups(const LayerNorm& n) {
  constexpr int kVectors = Groups * kGroup / kLanes;
  if (n.residual) layer_norm_vectors<kVectors, true>(n);
  else layer_norm_vectors<kVectors, false>(n);
}

void layer_norm(const LayerNorm& n, int groups) {
  switch (groups) {
    case 1:
      return layer_norm_groups<1>(n);
    case 2:
      return layer_norm_groups<2>(n);
    case 3:
      return layer_norm_groups<3>(n);
    default:
      return layer_norm_groups<4>(n);
  }
}

}  // namespace
}  // namespace obert
