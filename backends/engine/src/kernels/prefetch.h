// Asks for weights before they are multiplied. They are read once for each panel, one after another, from the last-level
// cache or from memory, and what a processor foresees by itself ends with a page and begins anew with each task.
#pragma once
#include <cstddef>
#include <cstdint>

namespace obert {
namespace {

constexpr size_t kPrefetchLine = 64;

// `bytes` from `ahead` bytes after `from` on, be they in its array or not. Hint as __builtin_prefetch has it: 3 into the
// first-level cache, 2 into the second. `bytes` are best a constant: a loop whose end depends on the row costs more than a
// few lines too many.
template <int Hint>
OBERT_INLINE void prefetch(const void* from, size_t ahead, size_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + ahead;   // a pointer must not leave its array
  for (size_t i = 0; i < bytes; i += kPrefetchLine) __builtin_prefetch(reinterpret_cast<const void*>(at + i), 0, Hint);
}

}  // namespace
}  // namespace obert
