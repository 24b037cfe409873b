// From dense weights to the tiles of kernels.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace obert {

struct TilesInt8Storage {
  struct alignas(64) Line {
    uint32_t dword[16];
  };
  int rows = 0, blocks = 0, chunks = 0, chunk_tiles = 0;
  size_t kept = 0;                    // blocks
  std::vector<uint32_t> start, offset;
  std::vector<uint16_t> place;
  std::vector<Line> stream;

  TilesInt8 view() const {
    if (start.empty()) return {};
    return {rows, blocks, chunks, chunk_tiles, start.data(), offset.data(), place.data(),
            reinterpret_cast<const uint32_t*>(stream.data())};
  }
};

// `weights` is [rows][inputs], any int16. What a byte cannot hold goes on in a further tile of the
// same place.
TilesInt8Storage pack_tiles(const int16_t* weights, int rows, int inputs);

// Whether a matrix of so many tiles, with so many blocks kept in them, is multiplied faster as tiles
// than block by block.
bool tiles_pay(size_t tiles, size_t kept);

}  // namespace obert
