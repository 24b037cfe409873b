#include "weights.h"

#include <algorithm>
#include <stdexcept>

namespace obert {
namespace {

// Puts kept blocks into rows of outputs, zeros elsewhere. Of blocks at one place the last one stays.
template <class From, class To, class Map>
void rows_of_packed(const Weights& w, To* to, Map map) {
  const PackedMatrix& p = w.packed;
  for (int o = 0; o < w.outputs; ++o) std::fill_n(to + static_cast<size_t>(o) * w.inputs, w.inputs, map(From{0}, o));
  const From* block = p.values->as<From>();
  int64_t place = 0;
  for (size_t s = 0; s < p.gaps->count; ++s, block += p.block) {
    place += p.gap(s);
    if (place >= p.blocks) throw std::runtime_error("packed blocks reach beyond the end of their matrix");
    int64_t row = place * p.block / p.columns, column = place * p.block % p.columns;
    for (int64_t j = 0; j < p.block; ++j) {
      int o = static_cast<int>(w.outputs_first ? row : column);
      int64_t i = w.outputs_first ? column : row;
      to[static_cast<int64_t>(o) * w.inputs + i] = map(block[j], o);
      if (++column == p.columns) {
        column = 0;
        ++row;
      }
    }
  }
}

// Copies [inputs, outputs] or [outputs, inputs] into rows of outputs, a tile at a time so that
// neither side is walked across its cache lines.
template <class From, class To, class Map>
void rows_of(const Weights& w, To* to, Map map) {
  if (!w.matrix) return rows_of_packed<From>(w, to, map);
  const From* from = w.matrix->as<From>();
  constexpr int kTile = 64;
  if (w.outputs_first) {
    for (int o = 0; o < w.outputs; ++o)
      for (int i = 0; i < w.inputs; ++i) {
        size_t at = static_cast<size_t>(o) * w.inputs + i;
        to[at] = map(from[at], o);
      }
    return;
  }
  for (int o0 = 0; o0 < w.outputs; o0 += kTile)
    for (int i0 = 0; i0 < w.inputs; i0 += kTile) {
      int o1 = std::min(w.outputs, o0 + kTile), i1 = std::min(w.inputs, i0 + kTile);
      for (int o = o0; o < o1; ++o)
        for (int i = i0; i < i1; ++i)
          to[static_cast<size_t>(o) * w.inputs + i] = map(from[static_cast<size_t>(i) * w.outputs + o], o);
    }
}

void int16_rows(const Weights& w, int16_t* to) {
  auto zero = [&](int o) { return w.zero_point.empty() ? 0 : w.zero_point[o]; };
  if (w.type() == Type::kInt8)
    rows_of<int8_t>(w, to, [&](int8_t v, int o) { return static_cast<int16_t>(v - zero(o)); });
  else
    rows_of<uint8_t>(w, to, [&](uint8_t v, int o) { return static_cast<int16_t>(v - zero(o)); });
}

}  // namespace

Product prepare(const std::vector<const Weights*>& weights, const Quantization* input, const Kernels& kernels) {
  Product p;
  p.quantized = input != nullptr;
  int inputs = weights[0]->inputs;
  for (const Weights* w : weights) {
    if (w->inputs != inputs || w->scale.empty() == p.quantized)
      throw std::runtime_error("matrices of one input differ in size or type");
    p.rows += w->outputs;
  }
  size_t size = static_cast<size_t>(p.rows) * inputs;
  p.bias.assign(p.rows, 0.f);
  int row = 0;
  for (const Weights* w : weights) {
    if (!w->bias.empty()) std::copy(w->bias.begin(), w->bias.end(), p.bias.begin() + row);
    row += w->outputs;
  }
  if (!p.quantized) {
    std::vector<float> dense(size);
    row = 0;
    for (const Weights* w : weights) {
      rows_of<float>(*w, dense.data() + static_cast<size_t>(row) * inputs, [](float v, int) { return v; });
      row += w->outputs;
    }
    p.real = pack_sparse_float(dense.data(), p.rows, inputs, kernels.packing);
    return p;
  }
  std::vector<int16_t> dense(size);
  p.scale.resize(p.rows);
  row = 0;
  for (const Weights* w : weights) {
    int16_t* rows = dense.data() + static_cast<size_t>(row) * inputs;
    int16_rows(*w, rows);
    for (int o = 0; o < w->outputs; ++o, ++row) {
      int64_t sum = 0;
      for (int i = 0; i < inputs; ++i) sum += rows[static_cast<size_t>(o) * inputs + i];
      double scale = static_cast<double>(input->scale) * w->scale[o];
      p.scale[row] = static_cast<float>(scale);
      p.bias[row] = static_cast<float>(p.bias[row] - scale * static_cast<double>(input->zero_point * sum));
    }
  }
  p.int8 = pack_sparse_int8(dense.data(), p.rows, inputs, kernels.packing);
  return p;
}

}  // namespace obert
