// Gathered rows, computed one at a time.
#pragma once
#include <vector>

#include "../graph/rows.h"

namespace obert {

// The terms that one result needs, with tables of their own.
class RowProgram {
 public:
  // Copies the tables: constants of the graph end when it is compiled.
  RowProgram(const Rows& rows, int result);
  RowProgram(RowProgram&&) noexcept = default;   // steps point into the tables, which do not move
  RowProgram& operator=(RowProgram&&) noexcept = default;

  int width() const { return steps_.back().width; }
  size_t count() const { return count_; }             // rows of the tables
  size_t scratch() const { return scratch_; }         // floats of working memory
  // Row `index` (0 <= index < count) into out[width], or added to what is there.
  void compute(const Kernels& k, size_t index, float* scratch, float* out, bool add) const {
    k.gather_row(steps_.data(), static_cast<int>(steps_.size()), index, scratch, out, add);
  }

 private:
  const void* hold(const Constant& table, size_t bytes);

  std::vector<RowStep> steps_;
  std::vector<std::vector<uint8_t>> tables_;
  size_t count_ = 0, scratch_ = 0;
};

}  // namespace obert
