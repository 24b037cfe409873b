// Inputs for the kernel tests: seeded, placed so that a stray access meets the end of an allocation.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels.h"
#include "pack_sparse.h"

namespace obert {

struct Random {
  std::mt19937 engine;
  explicit Random(uint32_t seed) : engine(seed) {}
  int integer(int low, int high) {
    return low + static_cast<int>(engine() % static_cast<uint32_t>(high - low + 1));
  }
  float real(float low, float high) {
    return low + (high - low) * (static_cast<float>(engine() >> 8) * 0x1p-24f);
  }
  float normal(float scale = 1.f) { return std::normal_distribution<float>(0.f, scale)(engine); }
  bool chance(double p) { return engine() < p * 4294967296.; }
};

// Exactly `count` elements, aligned to 64 bytes; filled with a value that shows when it is read.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count, T fill = T()) : count_(count), data_(nullptr) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, count * sizeof(T) + !count)) std::abort();
    data_ = static_cast<T*>(memory);
    for (size_t i = 0; i < count; ++i) data_[i] = fill;
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  size_t size() const { return count_; }

 private:
  size_t count_;
  T* data_;
};

// Ends the test where OBERT_TEST_AMX is set and the processor, or the system, has no AMX.
inline void demand_amx() {
  if (!std::getenv("OBERT_TEST_AMX") || find_kernels("amx")) return;
  std::fprintf(stderr, "OBERT_TEST_AMX: expected a processor and a system with AMX-INT8 and AMX-BF16\n");
  std::exit(1);
}

// Every table but the oracle.
inline std::vector<const Kernels*> tables_under_test() {
  demand_amx();
  const KernelSet set = available_kernels();
  std::vector<const Kernels*> tables;
  for (size_t i = 0; i < set.count; ++i)
    if (set.tables[i] != find_kernels("portable")) tables.push_back(set.tables[i]);
  return tables;
}

// [rows][inputs] with whole 4-blocks kept at `density`; `low` and `high` bound the kept values.
inline std::vector<int16_t> random_weights(Random& random, int rows, int inputs, double density, int low,
                                           int high) {
  std::vector<int16_t> w(static_cast<size_t>(rows) * inputs);
  for (int r = 0; r < rows; ++r)
    for (int b = 0; b < inputs; b += kBlock) {
      if (!random.chance(density)) continue;
      for (int i = b; i < std::min(inputs, b + kBlock); ++i)
        w[static_cast<size_t>(r) * inputs + i] = static_cast<int16_t>(random.integer(low, high));
    }
  return w;
}

}  // namespace obert
