#include "emulated_amx.h"

#include "expand_avx512.h"
#include "tables.h"
#include "tile_emulated.h"

#include "multiply_tiles.h"

#include "emulated_table.h"

namespace obert {
const Kernels* emulated_amx_avx512() {
  static const Kernels table = emulated_table("amx, emulated, rows by AVX-512");
  return &table;
}
}  // namespace obert
