// How activations lie in memory inside the engine: tokens in vector lanes, features along memory.
//
// Tokens are cut into panels of kPanel. A panel of n features holds
//   float:  [n][kPanel]              one feature of all its tokens is one row
//   uint8:  [(n + 3) / 4][kPanel][4] four features of a token share a dword
// so that every kernel works on 16 (or 8, or 4) tokens at once without a shuffle: a row of a sparse
// matrix broadcasts its weights, LayerNorm and softmax reduce along memory, and four finished output
// rows of a product are exactly one dword row of the next product's input.
//
// The last panel of a tensor may be partly empty. Kernels take `groups`, how many runs of kGroup
// tokens are in use; lanes beyond the last token hold any finite value and are never read out.
#pragma once
#include <cstddef>
#include <cstdint>

namespace obert {

constexpr int kPanel = 64;      // tokens of a panel
constexpr int kGroup = 16;      // tokens that a kernel may not split
constexpr int kBlock = 4;       // inputs of a block: one dword of uint8 activations

inline size_t panels_of(size_t tokens) { return (tokens + kPanel - 1) / kPanel; }
inline size_t blocks_of(size_t features) { return (features + kBlock - 1) / kBlock; }
inline size_t panel_floats(size_t features) { return features * kPanel; }
inline size_t panel_bytes(size_t features) { return blocks_of(features) * kBlock * kPanel; }

}  // namespace obert
