// The operations of src/kernels/tile_amx.h on the registers of tile_machine.h.
#pragma once
#include "tile_machine.h"

namespace obert {
namespace {

inline void tile_configure(const TileConfig& config) { machine_configure(config); }
inline void tile_release() { machine_release(); }
template <int T>
inline void tile_zero() {
  machine_zero(T);
}
template <int T>
inline void tile_load(const void* from, size_t stride) {
  machine_load(T, from, stride);
}
template <int T>
inline void tile_store(void* to, size_t stride) {
  machine_store(T, to, stride);
}
template <int C, int A, int B>
inline void tile_dot() {
  machine_dot(C, A, B);
}
template <int C, int A, int B>
inline void tile_dot_bf16() {
  machine_dot_bf16(C, A, B);
}

}  // namespace
}  // namespace obert
