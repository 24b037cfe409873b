// Asks for weights before they are multiplied. They are read once for each panel, one after another, from the last-level
// cache or from memory, and what a processor foresees by itself ends with a page and begins anew with each task.
#pragma once
#include <cstddef>

namespace obert {
namespace {

constexpr size_t kPrefetchLine = 64;

// Hint as __builtin_prefetch has it: 3 into the first-level cache, 2 into the second. `bytes` are best a constant: a
// loop whose end depends on the row costs more than a few lines too many.
template <int Hint, class T>
inline void prefetch(const T* from, size_t bytes) {
  const char* at = reinterpret_cast<const char*>(from);
  for (size_t i = 0; i < bytes; i += kPrefetchLine) __builtin_prefetch(at + i, 0, Hint);
}

}  // namespace
}  // namespace obert
