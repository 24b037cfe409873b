#include "arena.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace obert {

void Arena::Free::operator()(void* p) const { std::free(p); }

uint8_t* Arena::get(size_t bytes) {
  if (bytes > size_ || !memory_) {
    size_t rounded = (std::max<size_t>(bytes, 1) + 4095) / 4096 * 4096;
    memory_.reset();
    size_ = 0;
    auto* fresh = static_cast<uint8_t*>(std::aligned_alloc(kCacheLine, rounded));
    if (!fresh) throw std::bad_alloc();
    std::memset(fresh, 0, rounded);
    memory_.reset(fresh);
    size_ = rounded;
  }
  return memory_.get();
}

std::unique_ptr<Arena> Arenas::take() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return std::make_unique<Arena>();
  auto arena = std::move(free_.back());
  free_.pop_back();
  return arena;
}

void Arenas::give(std::unique_ptr<Arena> arena) noexcept {
  try {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(arena));
  } catch (...) {
    // No room to remember it: it is freed.
  }
}

}  // namespace obert
