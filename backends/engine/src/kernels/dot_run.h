// The blocks of one row in one chunk. Include after a simd_<isa>.h, before dot_<isa>.h.
#pragma once

namespace obert {
namespace {

struct Run {
  const int32_t* chunk;   // activations: [blocks of the chunk][kPanel] dwords
  const uint8_t* index;   // [count]
  const int8_t* value;    // [count][kBlock]
  int count;

  const int32_t* activations(int i) const { return chunk + static_cast<size_t>(index[i]) * kPanel; }
  int32_t weights(int i) const {
    int32_t w;
    std::memcpy(&w, value + static_cast<size_t>(i) * kBlock, sizeof w);
    return w;
  }
};

}  // namespace
}  // namespace obert
