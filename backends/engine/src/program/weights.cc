#include "weights.h"

#include <algorithm>
#include <stdexcept>

namespace obert {
namespace {

// Puts kept blocks into rows of outputs, zeros elsewhere. Of blocks at one place the last one stays.
template <class From, class To, class Map>
void rows_of_packed(const Outputs& some, To* to, Map map) {
  const Weights& w = *some.weights;
  const PackedMatrix& p = w.packed;
  const auto row_of = [&](int o) { return to + static_cast<size_t>(o - some.begin) * w.inputs; };
  for (int o = some.begin; o < some.begin + some.count; ++o) std::fill_n(row_of(o), w.inputs, map(From{0}, o));
  const From* block = p.values->as<From>();
  int64_t place = 0;
  for (size_t s = 0; s < p.gaps->count; ++s, block += p.block) {
    place += p.gap(s);
    if (place >= p.blocks) throw std::runtime_error("packed blocks reach beyond the end of their matrix");
    int64_t row = place * p.block / p.columns, column = place * p.block % p.columns;
    for (int64_t j = 0; j < p.block; ++j) {
      int o = static_cast<int>(w.outputs_first ? row : column);
      int64_t i = w.outputs_first ? column : row;
      if (o >= some.begin && o < some.begin + some.count) row_of(o)[i] = map(block[j], o);
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
void rows_of(const Outputs& some, To* to, Map map) {
  const Weights& w = *some.weights;
  if (!w.matrix) return rows_of_packed<From>(some, to, map);
  const From* from = w.matrix->as<From>();
  const int end = some.begin + some.count;
  const auto row_of = [&](int o) { return to + static_cast<size_t>(o - some.begin) * w.inputs; };
  constexpr int kTile = 64;
  if (w.outputs_first) {
    for (int o = some.begin; o < end; ++o)
      for (int i = 0; i < w.inputs; ++i) row_of(o)[i] = map(from[static_cast<size_t>(o) * w.inputs + i], o);
    return;
  }
  for (int o0 = some.begin; o0 < end; o0 += kTile)
    for (int i0 = 0; i0 < w.inputs; i0 += kTile) {
      int o1 = std::min(end, o0 + kTile), i1 = std::min(w.inputs, i0 + kTile);
      for (int o = o0; o < o1; ++o)
        for (int i = i0; i < i1; ++i) row_of(o)[i] = map(from[static_cast<size_t>(i) * w.outputs + o], o);
    }
}

void int16_rows(const Outputs& some, int16_t* to) {
  const Weights& w = *some.weights;
  auto zero = [&](int o) { return w.zero_point.empty() ? 0 : w.zero_point[o]; };
  if (w.type() == Type::kInt8)
    rows_of<int8_t>(some, to, [&](int8_t v, int o) { return static_cast<int16_t>(v - zero(o)); });
  else
    rows_of<uint8_t>(some, to, [&](uint8_t v, int o) { return static_cast<int16_t>(v - zero(o)); });
}

}  // namespace

Product prepare(const std::vector<Outputs>& outputs, const Quantization* input, const Kernels& kernels) {
  Product p;
  p.quantized = input != nullptr;
  int inputs = outputs[0].weights->inputs;
  for (const Outputs& some : outputs) {
    if (some.weights->inputs != inputs || some.weights->scale.empty() == p.quantized)
      throw std::runtime_error("matrices of one input differ in size or type");
    p.rows += some.count;
  }
  size_t size = static_cast<size_t>(p.rows) * inputs;
  p.bias.assign(p.rows, 0.f);
  int row = 0;
  for (const Outputs& some : outputs) {
    const std::vector<float>& bias = some.weights->bias;
    if (!bias.empty()) std::copy_n(bias.begin() + some.begin, some.count, p.bias.begin() + row);
    row += some.count;
  }
  if (!p.quantized) {
    std::vector<float> dense(size);
    row = 0;
    for (const Outputs& some : outputs) {
      rows_of<float>(some, dense.data() + static_cast<size_t>(row) * inputs, [](float v, int) { return v; });
      row += some.count;
    }
    p.real = pack_sparse_float(dense.data(), p.rows, inputs, kernels.packing);
    return p;
  }
  std::vector<int16_t> dense(size);
  p.scale.resize(p.rows);
  row = 0;
  for (const Outputs& some : outputs) {
    int16_t* rows = dense.data() + static_cast<size_t>(row) * inputs;
    int16_rows(some, rows);
    for (int o = 0; o < some.count; ++o, ++row) {
      int64_t sum = 0;
      for (int i = 0; i < inputs; ++i) sum += rows[static_cast<size_t>(o) * inputs + i];
      double scale = static_cast<double>(input->scale) * some.weights->scale[some.begin + o];
      p.scale[row] = static_cast<float>(scale);
      p.bias[row] = static_cast<float>(p.bias[row] - scale * static_cast<double>(input->zero_point * sum));
    }
  }
  p.int8 = pack_sparse_int8(dense.data(), p.rows, inputs, kernels.packing);
  return p;
}

}  // namespace obert
