// The blocks of one row in one chunk. Include after a simd_<isa>.h, before dot_<isa>.h.
#pragma once

namespace obert {
namespace {

struct Run {
  const int32_t* chunk;   // activations: [blocks of the chunk][kPanel] dwords
  const uint8_t* index;   // [count]
  const int8_t* value;    // [count][kBlock]
  size_t count;

  const int32_t* activations(size_t i) const { return chunk + static_cast<size_t>(index[i]) * kPanel; }
  int32_t weights(size_t i) const {
    int32_t w;
    std::memcpy(&w, value + i * kBlock, sizeof w);
    return w;
  }
  // To what follows them.
  void pass() { index += count, value += count * kBlock; }
};

}  // namespace
}  // namespace obert
