// The products of src/kernels/multiply_tiles.h and attention_tiles.h on emulated tile registers, with the
// other kernels of `portable`: as tables, so that tests run them like any other.
#pragma once
#include <vector>

#include "kernels.h"
#include "tables.h"
#include "tile_trap.h"

namespace obert {

// Rows expanded by a plain loop; heads of every size on tiles, where their numbers suit.
const Kernels* emulated_amx();
// Rows expanded as on a processor with AMX, which needs AVX-512, attention of `portable`; only in some builds.
const Kernels* emulated_amx_avx512();

inline std::vector<const Kernels*> emulated_amx_tables() {
  std::vector<const Kernels*> tables = {emulated_amx()};
#ifdef OBERT_HAVE_EMULATED_AMX_AVX512
  if (find_kernels("avx512vnni")) tables.push_back(emulated_amx_avx512());
#endif
#ifdef OBERT_HAVE_AMX
  // The code for a processor with AMX itself, by its traps on one without.
  static const bool trapped = find_kernels("avx512vnni") && trap_tiles();
  if (trapped) tables.push_back(&kAmxKernels);
#endif
  return tables;
}

}  // namespace obert
