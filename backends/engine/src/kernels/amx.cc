// AMX-INT8 for products of tiles, AMX-BF16 for those of attention, AVX-512 VNNI for everything else.
#include "kernels.h"

#include "simd_avx512.h"
#include "dot_run.h"
#include "dot_avx512vnni.h"
#include "multiply_rows.h"
#include "bodies.h"
#include "tile_amx.h"
#include "expand_avx512.h"
#include "multiply_tiles.h"
#include "attention_tiles.h"

namespace obert {
namespace {

void multiply_int8_or_tiles(const SparseInt8& w, const uint8_t* x, int groups, int row_begin, int row_end,
                            int32_t* acc) {
  if (w.tiles.start) multiply_tiles(w.tiles, x, groups, row_begin, row_end, acc);
  else multiply_int8(w, x, groups, row_begin, row_end, acc);
}

void attention_or_tiles(const Attention& a) {
  if (!are_few(a) && tiles_pay_for(a)) attention_where_tiles_suit(a);
  else attention(a);
}

constexpr Kernels with_tiles(Kernels k) {
  k.packing.tiles = true;
  k.multiply_int8 = multiply_int8_or_tiles;
  k.attention = attention_or_tiles;
  k.attention_scratch = attention_scratch_of_tiles;
  return k;
}

}  // namespace

const Kernels kAmxKernels = with_tiles(OBERT_KERNEL_TABLE("amx"));

}  // namespace obert
