#include "emulated_amx.h"

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

#include "emulated_table.h"

namespace obert {
const Kernels* emulated_amx() {
  static const Kernels table = emulated_table("amx, emulated");
  return &table;
}
}  // namespace obert
