#include "position_table.h"

#include <algorithm>
#include <cmath>

namespace obert {
namespace {

float rounded(float x, const std::vector<Quantization>& roundings) {
  for (const Quantization& q : roundings) {
    const auto zero = static_cast<float>(q.zero_point);
    x = (std::clamp(std::nearbyint(x / q.scale) + zero, 0.f, 255.f) - zero) * q.scale;
  }
  return x;
}

}  // namespace


PositionTable position_table(const Constant& constant, const Relative& term, int heads, int head_dim) {
  PositionTable t;
  const auto count = static_cast<size_t>(heads), size = static_cast<size_t>(head_dim);
  const size_t positions = constant.count / count / size;
  t.positions = static_cast<int>(positions);
  t.head_size = (positions + kTableColumns - 1) / kTableColumns * kTableColumns * size;
  t.data.resize(count * t.head_size);
  for (size_t h = 0; h < count; ++h) {
    const float* from = constant.as<float>() + h * positions * size;
    float* to = t.data.data() + h * t.head_size;
    for (size_t d = 0; d < size; ++d)
      for (size_t p = 0; p < positions; ++p)
        to[(p / kTableColumns * size + d) * kTableColumns + p % kTableColumns] =
            rounded(term.positions_last ? from[d * positions + p] : from[p * size + d], term.table_roundings);
  }
  return t;
}

}  // namespace obert
