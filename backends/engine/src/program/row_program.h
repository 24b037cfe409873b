// Gathered rows, computed one at a time.
#pragma once
#include <memory>
#include <vector>

#include "../graph/rows.h"

namespace obert {

// The terms that one result needs, with tables of their own.
class RowProgram {
 public:
  // Copies the tables: constants of the graph end when it is compiled.
  RowProgram(const Rows& rows, int result);

  int width() const { return width_; }
  size_t count() const { return count_; }             // rows of the tables
  size_t scratch() const { return scratch_; }         // floats of working memory
  // Row `index` (0 <= index < count) into out[width].
  void compute(size_t index, float* out, float* scratch) const;

 private:
  struct Term {
    RowOp op;
    int a = -1, b = -1;
    int width = 0, width_a = 0, width_b = 0;
    float constant = 0.f;
    Type type = Type::kFloat;
    std::vector<uint8_t> table;
    size_t offset = 0;                                // in the scratch
  };
  std::vector<Term> terms_;
  int width_ = 0;
  size_t count_ = 0, scratch_ = 0;
};

}  // namespace obert
