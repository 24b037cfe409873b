// Plain C++: one loop per formula, the oracle of every other table and the fallback of processors
// that have none. Sums of floats are doubles here, so that bounds elsewhere need not allow for this
// file's own rounding.
#include <cmath>
#include <cstring>

#include "row_order.h"
#include "tables.h"

namespace obert {
namespace {

float activate(Activation a, float x) {
  const double v = x;
  switch (a) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x < 0 ? 0.f : x;
    case Activation::kGeluErf:
      return static_cast<float>(v * .5 * (1 + std::erf(v * 0.70710678118654752)));
    case Activation::kGeluTanh:
      return static_cast<float>(v * .5 * (1 + std::tanh(0.79788456080286536 * (v + .044715 * v * v * v))));
    case Activation::kGeluSigmoid:
      return static_cast<float>(v / (1 + std::exp(-1.702 * v)));
    case Activation::kSilu:
      return static_cast<float>(v / (1 + std::exp(-v)));
    case Activation::kTanh:
      return static_cast<float>(std::tanh(v));
  }
  return x;
}

// Half to even, limits before rounding; NaN becomes 0.
uint8_t quantize(float y, float inverse_scale, int zero_point) {
  const float low = static_cast<float>(-zero_point), high = static_cast<float>(255 - zero_point);
  float x = y * inverse_scale;
  x = x > low ? x : low;
  x = x < high ? x : high;
  return static_cast<uint8_t>(static_cast<int>(std::nearbyint(x)) + zero_point);
}

float rounded(const Rounding& r, float x) {
  if (r.scale == 0.f) return x;
  return static_cast<float>(static_cast<int>(quantize(x, 1.f / r.scale, r.zero_point)) - r.zero_point) *
         r.scale;
}

size_t byte_at(size_t feature, size_t token) {
  return (feature / kBlock * kPanel + token) * kBlock + feature % kBlock;
}

// Blocks of one tile, as multiply_tiles finds them.
const uint32_t* add_tile(const uint32_t* stream, bool whole, const uint8_t* x, int blocks, int groups,
                         int32_t* const (&rows)[kTileRows]) {
  uint16_t masks[kTileRows];
  std::memset(masks, 0xff, sizeof masks);
  if (!whole) {
    std::memcpy(masks, stream, sizeof masks);
    stream += kTileRows / 2;  // two masks a dword
  }
  for (int r = 0; r < kTileRows; ++r)
    for (int b = 0; b < kTileBlocks; ++b) {
      if (!(masks[r] >> b & 1)) continue;
      int8_t value[kBlock];
      std::memcpy(value, stream++, sizeof value);
      if (!rows[r] || b >= blocks) continue;
      for (int t = 0; t < groups * kGroup; ++t)
        for (int i = 0; i < kBlock; ++i) rows[r][t] += value[i] * x[(b * kPanel + t) * kBlock + i];
    }
  return stream;
}

void multiply_tiles(const TilesInt8& w, const uint8_t* x, int groups, int row_begin, int row_end, int32_t* acc) {
  const int strips = (w.rows + kTileRows - 1) / kTileRows;
  for (int r = row_begin; r < row_end; ++r)
    std::memset(acc + static_cast<size_t>(r - row_begin) * kPanel, 0, sizeof(int32_t) * static_cast<size_t>(groups) * kGroup);
  for (int c = 0; c < w.chunks; ++c)
    for (int s = row_begin / kTileRows; s * kTileRows < row_end; ++s) {
      int32_t* rows[kTileRows] = {};
      for (int r = 0; r < kTileRows; ++r) {
        const int row = s * kTileRows + r;
        if (row >= row_begin && row < row_end) rows[r] = acc + static_cast<size_t>(row - row_begin) * kPanel;
      }
      const size_t at = static_cast<size_t>(c) * strips + s;
      size_t dword = w.offset[at];
      for (uint32_t t = w.start[at]; t < w.start[at + 1]; ++t) {
        const bool whole = (w.place[t] & kWholeTile) != 0;
        const int block = (c * w.chunk_tiles + (w.place[t] & ~kWholeTile)) * kTileBlocks;
        if (whole) dword = (dword + 15) / 16 * 16;
        const uint8_t* from = x + static_cast<size_t>(block) * kPanel * kBlock;
        dword = static_cast<size_t>(add_tile(w.stream + dword, whole, from, w.blocks - block, groups, rows) - w.stream);
      }
    }
}

void multiply_int8(const SparseInt8& w, const uint8_t* x, int groups, int row_begin, int row_end,
                   int32_t* acc) {
  if (w.tiles.start) return multiply_tiles(w.tiles, x, groups, row_begin, row_end, acc);
  for (int r = row_begin; r < row_end; ++r)
    for (int t = 0; t < groups * kGroup; ++t) acc[static_cast<size_t>(r - row_begin) * kPanel + t] = 0;
  for (int p = row_begin; p < row_end; ++p)
    for (int c = 0; c < w.chunks; ++c) {
      const size_t chunk = static_cast<size_t>(c) * w.rows, at = chunk + p;
      int32_t* out = acc + static_cast<size_t>(row_at(w.order, chunk, p) - row_begin) * kPanel;
      for (uint32_t b = w.start[at]; b < w.start[at + 1]; ++b) {
        const size_t block = static_cast<size_t>(c) * w.chunk_blocks + w.index[b];
        for (int t = 0; t < groups * kGroup; ++t)
          for (int i = 0; i < kBlock; ++i)
            out[t] += w.value[b * size_t{kBlock} + i] * x[(block * kPanel + t) * kBlock + i];
      }
    }
}

int place_of_row(const SparseFloat& w, int chunk, int row) {
  int place = w.order ? row / kRowWindow * kRowWindow : row;
  while (row_at(w.order, static_cast<size_t>(chunk) * w.rows, place) != row) ++place;
  return place;
}

void multiply_float(const SparseFloat& w, const float* x, int groups, int row_begin, int row_end,
                    float* acc) {
  for (int r = row_begin; r < row_end; ++r) {
    double sum[kPanel] = {};
    for (int c = 0; c < w.chunks; ++c) {
      const size_t at = static_cast<size_t>(c) * w.rows + place_of_row(w, c, r);
      for (uint32_t b = w.start[at]; b < w.start[at + 1]; ++b) {
        const float* row = x + (static_cast<size_t>(c) * w.chunk_inputs + w.index[b]) * kPanel;
        for (int t = 0; t < groups * kGroup; ++t) sum[t] += static_cast<double>(w.value[b]) * row[t];
      }
    }
    for (int t = 0; t < groups * kGroup; ++t)
      acc[static_cast<size_t>(r - row_begin) * kPanel + t] = static_cast<float>(sum[t]);
  }
}

template <class T>
void finish(const Epilogue& e, const T* acc, int groups, int row_begin, int row_end) {
  for (int r = row_begin; r < row_end; ++r) {
    for (int t = 0; t < groups * kGroup; ++t) {
      const float x = static_cast<float>(acc[static_cast<size_t>(r - row_begin) * kPanel + t]);
      const float sum = std::fma(x, e.scale ? e.scale[r] : 1.f, e.bias ? e.bias[r] : 0.f);
      float y = activate(e.activation, rounded(e.shift_rounding, rounded(e.rounding, sum) + (e.shift ? e.shift[r] : 0.f)));
      const size_t at = static_cast<size_t>(r) * kPanel + t;
      if (e.residual) y += e.residual[at];
      if (e.factor) y *= e.factor[at];
      y = rounded(e.out_rounding, y);
      if (e.out) e.out[at] = y;
      if (e.quantized) e.quantized[byte_at(r, t)] = quantize(y, e.inverse_scale, e.zero_point);
    }
  }
  if (!e.quantized) return;
  for (int r = row_end; r % kBlock; ++r)
    for (int t = 0; t < groups * kGroup; ++t) e.quantized[byte_at(r, t)] = static_cast<uint8_t>(e.zero_point);
}

void finish_int8(const Epilogue& e, const int32_t* acc, int groups, int row_begin, int row_end) {
  finish(e, acc, groups, row_begin, row_end);
}
void finish_float(const Epilogue& e, const float* acc, int groups, int row_begin, int row_end) {
  finish(e, acc, groups, row_begin, row_end);
}

void layer_norm(const LayerNorm& n, int groups) {
  for (int t = 0; t < groups * kGroup; ++t) {
    const auto value = [&](int f) {
      const size_t at = static_cast<size_t>(f) * kPanel + t;
      return static_cast<double>(n.x[at]) + (n.residual ? n.residual[at] : 0.f);
    };
    double sum = 0, squares = 0;
    for (int f = 0; f < n.features; ++f) sum += value(f);
    const double mean = n.centred ? sum / n.features : 0;
    for (int f = 0; f < n.features; ++f) squares += (value(f) - mean) * (value(f) - mean);
    const double inverse = 1 / std::sqrt(squares / n.features + n.epsilon);
    for (int f = 0; f < n.features; ++f) {
      const float y =
          static_cast<float>((value(f) - mean) * inverse * n.gamma[f] + (n.beta ? n.beta[f] : 0.f));
      if (n.out) n.out[static_cast<size_t>(f) * kPanel + t] = y;
      if (n.quantized) n.quantized[byte_at(f, t)] = quantize(y, n.inverse_scale, n.zero_point);
      if (n.out_scale > 0.f)
        n.out[static_cast<size_t>(f) * kPanel + t] = static_cast<float>(n.quantized[byte_at(f, t)] - n.zero_point) * n.out_scale;
    }
    for (int f = n.features; n.quantized && f % kBlock; ++f)
      n.quantized[byte_at(f, t)] = static_cast<uint8_t>(n.zero_point);
  }
}

size_t float_at(size_t token, int width, int column) {
  return (token / kPanel * static_cast<size_t>(width) + static_cast<size_t>(column)) * kPanel +
         token % kPanel;
}

// A feature of a token of queries, keys or values: the float, or its code less the zero point.
double feature(const float* x, const uint8_t* codes, int width, const Rounding& of, size_t token, int column) {
  if (!codes) return x[float_at(token, width, column)];
  const size_t panel = token / kPanel * static_cast<size_t>(width) * kPanel;
  return codes[panel + byte_at(static_cast<size_t>(column), token % kPanel)] - of.zero_point;
}

void attention(const Attention& a) {
  const bool codes = a.q_codes != nullptr;
  const double of_scores = codes ? static_cast<double>(a.of_q.scale) * a.of_k.scale : 1, of_y = codes ? a.of_v.scale : 1;
  double* p = static_cast<double*>(a.scratch);
  for (int i = a.query_begin; i < a.query_end; ++i) {
    const size_t query = a.first_query + static_cast<size_t>(i);
    double top = -INFINITY, total = 0;
    for (int k = 0; k < a.length; ++k) {
      const size_t key = a.first + static_cast<size_t>(k);
      double dot = 0;
      for (int d = 0; d < a.head_dim; ++d)
        dot += feature(a.q, a.q_codes, a.q_width, a.of_q, query, a.q_column + d) *
               feature(a.k, a.k_codes, a.k_width, a.of_k, key, a.k_column + d);
      // In float from here: masks of -3.4e38 are meant to swallow the scores.
      float score = rounded(a.scores, static_cast<float>(dot * of_scores * a.scale));
      if (a.mask) score += a.mask[static_cast<size_t>(i) * a.mask_stride + k];
      p[k] = score;
      top = score > top ? static_cast<double>(score) : top;
    }
    for (int k = 0; k < a.length; ++k) {
      p[k] = std::exp(p[k] - top);
      total += p[k];
    }
    for (int k = 0; k < a.length; ++k) {
      p[k] /= total;
      if (a.nan_to_zero && std::isnan(p[k])) p[k] = 0;
      if (a.probabilities.scale != 0.f) p[k] = rounded(a.probabilities, static_cast<float>(p[k]));
    }
    for (int d = 0; d < a.head_dim; ++d) {
      double sum = 0;
      for (int k = 0; k < a.length; ++k)
        sum += p[k] * feature(a.v, a.v_codes, a.v_width, a.of_v, a.first + static_cast<size_t>(k), a.v_column + d);
      const float y = static_cast<float>(sum * of_y);
      if (a.out) a.out[float_at(query, a.out_width, a.out_column + d)] = y;
      if (!a.quantized) continue;
      const size_t panel = query / kPanel * (static_cast<size_t>(a.quantized_width) / kBlock * kBlock * kPanel);
      a.quantized[panel + byte_at(static_cast<size_t>(a.out_column + d), query % kPanel)] =
          quantize(y, a.inverse_scale, a.zero_point);
    }
  }
}

void rotate(const Rotary& r, int groups) {
  const int half = r.head_dim / 2;
  const auto at = [](int f, int t) { return static_cast<size_t>(f) * kPanel + static_cast<size_t>(t); };
  for (int f = 0; f < r.features; ++f)
    for (int t = 0; t < groups * kGroup; ++t) {
      const int d = f % r.head_dim, row = r.halves ? d % half : d;
      const double other = d < half ? -static_cast<double>(r.x[at(f + half, t)]) : r.x[at(f - half, t)];
      r.out[at(f, t)] = static_cast<float>(static_cast<double>(r.x[at(f, t)]) * r.cosine[at(row, t)] + other * r.sine[at(row, t)]);
    }
}

size_t attention_scratch(int length, int) { return static_cast<size_t>(length) * sizeof(double); }

void relative_scores(const RelativeScores& r) {
  for (int i = r.query_begin; i < r.query_end; ++i)
    for (int j = 0; j < r.length; ++j) {
      double by_query = 0, by_key = 0;
      for (int d = 0; d < r.head_dim; ++d) {
        const auto at = [&](const RelativeTerm& t, int own, int other) {
          const int32_t column = t.index[static_cast<size_t>(own) * t.index_stride + static_cast<size_t>(other)];
          const int strip = column / kTableColumns * r.head_dim + d;
          return static_cast<double>(t.table[static_cast<size_t>(strip) * kTableColumns + static_cast<size_t>(column % kTableColumns)]);
        };
        const size_t query = r.first_query + static_cast<size_t>(i), key = r.first + static_cast<size_t>(j);
        if (r.by_query.table) by_query += at(r.by_query, i, j) * r.q[float_at(query, r.q_width, r.q_column + d)];
        if (r.by_key.table) by_key += at(r.by_key, j, i) * r.k[float_at(key, r.k_width, r.k_column + d)];
      }
      // The sum of the positions' terms first: a mask of -3.4e38 is meant to swallow it.
      const double of_query = rounded(r.by_query.rounding, static_cast<float>(by_query));
      const double of_key = rounded(r.by_key.rounding, static_cast<float>(by_key));
      const auto sum = static_cast<float>(of_query * r.by_query.factor + of_key * r.by_key.factor);
      const float mask = r.mask ? r.mask[static_cast<size_t>(i) * r.mask_stride + static_cast<size_t>(j)] : 0.f;
      r.out[static_cast<size_t>(i - r.query_begin) * static_cast<size_t>(r.length) + static_cast<size_t>(j)] = mask + sum;
    }
}

size_t relative_scratch(int, int) { return 0; }

int in_use(int tokens) { return (tokens + kGroup - 1) / kGroup * kGroup; }

void import_float(const float* rows, size_t stride, int tokens, int features, float* panel) {
  for (int f = 0; f < features; ++f)
    for (int t = 0; t < in_use(tokens); ++t)
      panel[static_cast<size_t>(f) * kPanel + t] =
          t < tokens ? rows[static_cast<size_t>(t) * stride + f] : 0.f;
}

void import_uint8(const uint8_t* rows, size_t stride, int tokens, int features, uint8_t zero_point,
                  uint8_t* panel) {
  for (int f = 0; f < (features + kBlock - 1) / kBlock * kBlock; ++f)
    for (int t = 0; t < in_use(tokens); ++t)
      panel[byte_at(f, t)] =
          t < tokens && f < features ? rows[static_cast<size_t>(t) * stride + f] : zero_point;
}

void export_float(const float* panel, int tokens, int features, float* rows, size_t stride) {
  for (int t = 0; t < tokens; ++t)
    for (int f = 0; f < features; ++f)
      rows[static_cast<size_t>(t) * stride + f] = panel[static_cast<size_t>(f) * kPanel + t];
}

void export_uint8(const uint8_t* panel, int tokens, int features, uint8_t* rows, size_t stride) {
  for (int t = 0; t < tokens; ++t)
    for (int f = 0; f < features; ++f) rows[static_cast<size_t>(t) * stride + f] = panel[byte_at(f, t)];
}

float from_half(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double size = exponent == 0    ? std::ldexp(mantissa, -24)
                      : exponent < 31  ? std::ldexp(1024 + mantissa, exponent - 25)
                      : mantissa == 0  ? INFINITY
                                       : NAN;
  return static_cast<float>(h & 0x8000 ? -size : size);
}

float gathered(const RowStep& s, size_t at) {
  switch (s.element) {
    case Element::kFloat:
      return static_cast<const float*>(s.table)[at];
    case Element::kHalf:
      return from_half(static_cast<const uint16_t*>(s.table)[at]);
    case Element::kInt8:
      return static_cast<const int8_t*>(s.table)[at];
    case Element::kUInt8:
      return static_cast<const uint8_t*>(s.table)[at];
  }
  return 0.f;
}

// Element i of a step's result.
float element_of(const RowStep& s, size_t index, const float* scratch, int i) {
  const auto a = [&] { return scratch[s.a + static_cast<size_t>(i)]; };
  const auto b = [&] { return scratch[s.b + static_cast<size_t>(i / (s.width_a / s.width_b))]; };
  switch (s.op) {
    case RowOp::kGather:
      return gathered(s, index * static_cast<size_t>(s.width) + static_cast<size_t>(i));
    case RowOp::kConstant:
      return s.constant;
    case RowOp::kAdd:
      return a() + b();
    case RowOp::kSubtract:
      return a() - b();
    case RowOp::kMultiply:
      return a() * b();
    case RowOp::kDivide:
      return a() / b();
    case RowOp::kFloor:
      return std::floor(a());
    case RowOp::kConcat:
      return i < s.width_a ? a() : scratch[s.b + static_cast<size_t>(i - s.width_a)];
  }
  return 0.f;
}

void gather_row(const RowStep* steps, int count, size_t index, float* scratch, float* out, bool add) {
  for (const RowStep* s = steps; s < steps + count; ++s)
    for (int i = 0; i < s->width; ++i) scratch[s->out + static_cast<size_t>(i)] = element_of(*s, index, scratch, i);
  const RowStep& last = steps[count - 1];
  for (int i = 0; i < last.width; ++i) {
    const float y = scratch[last.out + static_cast<size_t>(i)];
    out[i] = add ? out[i] + y : y;
  }
}

}  // namespace

const Kernels kPortableKernels = {"portable",   {},           multiply_int8, multiply_float,    finish_int8,
                                  finish_float, layer_norm,   rotate,        attention,         attention_scratch,
                                  relative_scores, relative_scratch, import_float, import_uint8, export_float,
                                  export_uint8, gather_row};

}  // namespace obert
