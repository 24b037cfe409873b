#include "row_program.h"

#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>

namespace obert {
namespace {

size_t size_of(Type type) {
  switch (type) {
    case Type::kFloat: return 4;
    case Type::kFloat16: return 2;
    case Type::kInt8:
    case Type::kUInt8: return 1;
    default: throw std::runtime_error("a table of rows has an unexpected type");
  }
}

float from_half(uint16_t h) {
  uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 0) {
    float f = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -f : f;
  }
  uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

template <class T>
void widen(const uint8_t* from, int n, float* out) {
  const T* x = reinterpret_cast<const T*>(from);
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(x[i]);
}

// b has as many elements as a, or one for each run of a.
template <class F>
void combine(const float* a, int na, const float* b, int nb, float* out, F f) {
  if (na == nb) {
    for (int i = 0; i < na; ++i) out[i] = f(a[i], b[i]);
    return;
  }
  int run = na / nb;
  for (int g = 0; g < nb; ++g) {
    float y = b[g];
    for (int i = g * run; i < (g + 1) * run; ++i) out[i] = f(a[i], y);
  }
}

void floor_of(const float* x, int n, float* out) {
  constexpr float kWhole = 8388608.f;   // from here on floats have no fraction
  for (int i = 0; i < n; ++i) {
    float v = x[i];
    if (!(std::fabs(v) < kWhole)) {
      out[i] = v;
      continue;
    }
    auto t = static_cast<float>(static_cast<int32_t>(v));
    out[i] = t > v ? t - 1.f : t;
  }
}

}  // namespace

RowProgram::RowProgram(const Rows& rows, int result) {
  std::vector<int> order;
  std::vector<char> need(rows.terms.size(), 0);
  need[result] = 1;
  for (int t = result; t >= 0; --t) {
    if (!need[t]) continue;
    if (rows.terms[t].a >= 0) need[rows.terms[t].a] = 1;
    if (rows.terms[t].b >= 0) need[rows.terms[t].b] = 1;
  }
  std::map<int, int> place;
  bool gathered = false;
  for (int t = 0; t <= result; ++t) {
    if (!need[t]) continue;
    const RowTerm& from = rows.terms[t];
    Term to;
    to.op = from.op;
    to.width = from.width;
    to.constant = from.constant;
    if (from.a >= 0) {
      to.a = place.at(from.a);
      to.width_a = rows.terms[from.a].width;
    }
    if (from.b >= 0) {
      to.b = place.at(from.b);
      to.width_b = rows.terms[from.b].width;
    }
    if (from.op == RowOp::kGather) {
      to.type = from.table->type;
      size_t bytes = from.table->count * size_of(to.type);
      to.table.resize(bytes);
      std::memcpy(to.table.data(), from.table->data, bytes);
      auto n = static_cast<size_t>(from.table->shape[0]);
      if (gathered && n != count_) throw std::runtime_error("tables of one row have different numbers of rows");
      count_ = n;
      gathered = true;
    }
    to.offset = scratch_;
    scratch_ += (static_cast<size_t>(to.width) + 15) / 16 * 16;
    place[t] = static_cast<int>(terms_.size());
    terms_.push_back(std::move(to));
  }
  width_ = rows.terms[result].width;
}

void RowProgram::compute(size_t index, float* out, float* scratch) const {
  for (size_t t = 0; t < terms_.size(); ++t) {
    const Term& term = terms_[t];
    float* y = t + 1 == terms_.size() ? out : scratch + term.offset;
    const float* a = term.a >= 0 ? scratch + terms_[term.a].offset : nullptr;
    const float* b = term.b >= 0 ? scratch + terms_[term.b].offset : nullptr;
    int n = term.width;
    switch (term.op) {
      case RowOp::kGather: {
        const uint8_t* row = term.table.data() + index * static_cast<size_t>(n) * size_of(term.type);
        if (term.type == Type::kFloat) std::memcpy(y, row, static_cast<size_t>(n) * sizeof(float));
        else if (term.type == Type::kInt8) widen<int8_t>(row, n, y);
        else if (term.type == Type::kUInt8) widen<uint8_t>(row, n, y);
        else
          for (int i = 0; i < n; ++i) {
            uint16_t h;
            std::memcpy(&h, row + 2 * i, 2);
            y[i] = from_half(h);
          }
        break;
      }
      case RowOp::kConstant: y[0] = term.constant; break;
      case RowOp::kAdd: combine(a, term.width_a, b, term.width_b, y, [](float p, float q) { return p + q; }); break;
      case RowOp::kSubtract: combine(a, term.width_a, b, term.width_b, y, [](float p, float q) { return p - q; }); break;
      case RowOp::kMultiply: combine(a, term.width_a, b, term.width_b, y, [](float p, float q) { return p * q; }); break;
      case RowOp::kDivide: combine(a, term.width_a, b, term.width_b, y, [](float p, float q) { return p / q; }); break;
      case RowOp::kFloor: floor_of(a, n, y); break;
      case RowOp::kConcat:
        std::memcpy(y, a, static_cast<size_t>(term.width_a) * sizeof(float));
        std::memcpy(y + term.width_a, b, static_cast<size_t>(term.width_b) * sizeof(float));
        break;
    }
  }
}

}  // namespace obert
