// Blocks one after the other, for instruction sets with a dot4(sum, activations, weights) of u8 x s8
// that is exact and writes straight into the accumulator. Include after defining dot4.
#pragma once

namespace obert {
namespace {

template <int V>
OBERT_INLINE void add_blocks(const Run& run, I32 (&sum)[V]) {
  // Few vectors leave the multiplier waiting for itself: neighbours go to accumulators of their own.
  constexpr size_t kSets = V >= 8 ? 1 : V >= 4 ? 2 : 4;
  I32 more[kSets][V];
  for (size_t s = 0; s < kSets; ++s)
    for (int v = 0; v < V; ++v) more[s][v] = s ? set(0) : sum[v];
  size_t i = 0;
  for (; i + kSets <= run.count; i += kSets)
    for (size_t s = 0; s < kSets; ++s) {
      const int32_t* x = run.activations(i + s);
      const I32 w = set(run.weights(i + s));
      for (int v = 0; v < V; ++v) more[s][v] = dot4(more[s][v], load(x + v * kLanes), w);
    }
  for (; i < run.count; ++i) {
    const int32_t* x = run.activations(i);
    const I32 w = set(run.weights(i));
    for (int v = 0; v < V; ++v) more[0][v] = dot4(more[0][v], load(x + v * kLanes), w);
  }
  for (int v = 0; v < V; ++v) {
    sum[v] = more[0][v];
    for (size_t s = 1; s < kSets; ++s) sum[v] = add(sum[v], more[s][v]);
  }
}

}  // namespace
}  // namespace obert
