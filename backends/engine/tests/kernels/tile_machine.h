// Eight tile registers in plain C++, as the Intel 64 manual describes AMX-TILE, AMX-INT8 and AMX-BF16
// (LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBSUD, TDPBF16PS, TILERELEASE; palette 1). What the processor would answer
// with an exception throws std::logic_error. One set of registers a thread.
#pragma once
#include <cstddef>

#include "tile_config.h"

namespace obert {

void machine_configure(const TileConfig& config);
void machine_release();
// Whether this thread holds registers that it should have released.
bool machine_configured();
void machine_zero(int tile);
void machine_load(int tile, const void* from, size_t stride);
void machine_store(int tile, void* to, size_t stride);
void machine_dot(int c, int a, int b);
void machine_dot_bf16(int c, int a, int b);

}  // namespace obert
