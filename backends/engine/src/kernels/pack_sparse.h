// From dense weights to the storage that the sparse kernels walk.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "pack_tiles.h"

namespace obert {

struct SparseInt8Storage {
  int rows = 0, chunks = 0, chunk_blocks = 0;
  std::vector<uint32_t> start;
  std::vector<uint8_t> index;
  std::vector<int8_t> value;
  std::vector<RowBlocks> row_blocks;
  std::vector<uint8_t> order, whole;
  TilesInt8Storage tiles;

  SparseInt8 view() const {
    const auto at = [](const auto& v) { return v.empty() ? nullptr : v.data(); };
    return {rows, chunks, chunk_blocks, start.data(), index.data(), value.data(), at(row_blocks), at(order), at(whole), tiles.view()};
  }
};

struct SparseFloatStorage {
  int rows = 0, chunks = 0, chunk_inputs = 0;
  std::vector<uint32_t> start;
  std::vector<uint8_t> index;
  std::vector<float> value;
  std::vector<uint8_t> order;

  SparseFloat view() const {
    return {rows, chunks, chunk_inputs, start.data(), index.data(), value.data(), order.empty() ? nullptr : order.data()};
  }
};

// Of a chunk's blocks, what a row stored whole keeps at least.
constexpr double kWholeShare = .75;

// `weights` is [rows][inputs], any int16: a weight less its zero point is within +-255. Blocks of
// zeros are dropped. What a byte cannot hold is split into blocks that add up; for a table that
// saturates, so is what breaks the rule of kernels.h, and couples are formed as far as a quick search
// finds them. Where `packing` says so, rows that keep kWholeShare of a chunk's blocks and need no split are stored whole,
// and rows are ordered and filled up.
// Tiles alone where `packing` wants them and they pay. `packing` is that of the table to be used.
SparseInt8Storage pack_sparse_int8(const int16_t* weights, int rows, int inputs, const Packing& packing = {});
// Zero weights are dropped.
SparseFloatStorage pack_sparse_float(const float* weights, int rows, int inputs, const Packing& packing = {});

}  // namespace obert
