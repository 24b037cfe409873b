#include "emulated_amx.h"

#include "simd_emulated.h"
#include "tables.h"
#include "tile_emulated.h"

namespace obert {
namespace {

const uint32_t* expand_row(uint32_t mask, const uint32_t* from, uint32_t* to) {
  for (int b = 0; b < kTileBlocks; ++b) to[b] = mask >> b & 1 ? *from++ : 0;
  return from;
}

}  // namespace
}  // namespace obert

#include "multiply_tiles.h"

#include "maths.h"
#include "quantize.h"
#include "attention.h"
#include "attention_tiles.h"
#include "relative_scores.h"

#include "emulated_table.h"

namespace obert {
namespace {

Kernels with_attention(Kernels k) {
  k.attention = attention_where_tiles_suit;
  k.attention_scratch = attention_scratch_of_tiles;
  k.relative_scores = relative_scores;
  k.relative_scratch = relative_scratch;
  return k;
}

}  // namespace

const Kernels* emulated_amx() {
  static const Kernels table = with_attention(emulated_table("amx, emulated"));
  return &table;
}
}  // namespace obert
