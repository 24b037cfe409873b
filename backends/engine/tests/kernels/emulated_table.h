// Include after multiply_tiles.h.
#pragma once

namespace obert {
namespace {

void multiply_int8(const SparseInt8& w, const uint8_t* x, int groups, int row_begin, int row_end, int32_t* acc) {
  if (w.tiles.start) multiply_tiles(w.tiles, x, groups, row_begin, row_end, acc);
  else kPortableKernels.multiply_int8(w, x, groups, row_begin, row_end, acc);
}

Kernels emulated_table(const char* name) {
  Kernels k = kPortableKernels;
  k.name = name;
  k.packing.tiles = true;
  k.multiply_int8 = multiply_int8;
  return k;
}

}  // namespace
}  // namespace obert
