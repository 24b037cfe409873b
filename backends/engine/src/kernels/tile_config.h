// What a processor with AMX must know of its eight tile registers before it uses them (LDTILECFG).
#pragma once
#include <cstdint>

#ifndef OBERT_INLINE
#define OBERT_INLINE inline __attribute__((always_inline))
#endif

namespace obert {

constexpr int kTileRegisters = 8;
constexpr int kTileRowBytes = 64;

struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "as LDTILECFG reads it");

namespace {

// All registers in full size: kTileRows rows of kTileRowBytes.
constexpr TileConfig kFullTiles = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

}  // namespace
}  // namespace obert
