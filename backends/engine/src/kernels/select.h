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
};

constexpr size_t kMaxTables = 8;

// What this processor and its operating system offer.
uint32_t detect_isa();
// Tables that run on a processor of these bits, best first, into tables[kMaxTables]; with `only`, a
// name, at most that one. Returns how many.
size_t select_kernels(uint32_t isa, const char* only, const Kernels** tables);

}  // namespace obert
