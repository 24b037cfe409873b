// The bytes of a fuzzer as small decisions. Where they end, every decision is 0.
#pragma once
#include <cstddef>
#include <cstdint>

namespace obert::testing {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  int below(int n) { return n > 0 && at_ < size_ ? data_[at_++] % n : 0; }
  bool done() const { return at_ >= size_; }
  template <class List>
  auto pick(const List& list) {
    return list[static_cast<size_t>(below(static_cast<int>(sizeof list / sizeof *list)))];
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

}  // namespace obert::testing
