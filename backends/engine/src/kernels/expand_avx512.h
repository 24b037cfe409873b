// A tile row of kept blocks to its full 64 bytes: vpexpandd, two instructions of the shuffle port and a
// load, beside one more for the mask.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "tile_config.h"

namespace obert {
namespace {

// Bit b of `mask` says whether block b is in `from`; zeros elsewhere. Returns what follows the row.
OBERT_INLINE const uint32_t* expand_row(uint32_t mask, const uint32_t* from, uint32_t* to) {
  __asm__("" : "+r"(mask));   // what GCC 12 knows to have 16 bits it counts in 16 bits, and widens the count
  _mm512_store_si512(to, _mm512_maskz_expandloadu_epi32(static_cast<__mmask16>(mask), from));
  return from + __builtin_popcount(mask);
}

}  // namespace
}  // namespace obert
