// Instruction sets as bits, and the choice of tables as a pure function of them, so that it can be
// tested for processors that are not at hand.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace obert {

enum IsaBits : uint32_t {
  kIsaAvx2 = 1,        // with FMA
  kIsaAvx512Vnni = 2,  // F, BW, DQ, VL, VNNI
  kIsaAvxVnni = 4,     // with AVX2 and FMA
  kIsaNeonDot = 8,
  kIsaNeonI8mm = 16,
  kIsaAmxInt8 = 32,    // AMX-TILE and AMX-INT8, usable by this process
  kIsaAmxBf16 = 64,    // AMX-BF16, usable by this process
};

constexpr size_t kMaxTables = 8;

// What this processor and its operating system offer. Tile registers enlarge what the system saves of
// every thread, so a process must ask for them; that is done only when `only`, a name or null, lets a
// table be chosen that wants them.
uint32_t detect_isa(const char* only);
// Tables that run on a processor of these bits, best first, into tables[kMaxTables]; with `only`, a
// name, at most that one. Returns how many.
size_t select_kernels(uint32_t isa, const char* only, const Kernels** tables);

}  // namespace obert
