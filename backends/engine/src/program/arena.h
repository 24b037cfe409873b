// Working memory of runs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace obert {

constexpr size_t kCacheLine = 64;

// Reusable working memory; one for each thread of execution.
class Arena {
 public:
  // At least `bytes`, 64-byte aligned, zeroed when grown.
  uint8_t* get(size_t bytes);
  uint8_t* memory() { return memory_.get(); }

 private:
  struct Free { void operator()(void* p) const; };
  std::unique_ptr<uint8_t, Free> memory_;
  size_t size_ = 0;
};

// Arenas that no run uses at the moment.
class Arenas {
 public:
  std::unique_ptr<Arena> take();
  void give(std::unique_ptr<Arena> arena) noexcept;

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arena>> free_;
};

}  // namespace obert
