#include "row_program.h"

#include <map>
#include <stdexcept>

namespace obert {
namespace {

struct Stored {
  Element element;
  size_t bytes;
};

Stored stored(Type type) {
  switch (type) {
    case Type::kFloat: return {Element::kFloat, 4};
    case Type::kFloat16: return {Element::kHalf, 2};
    case Type::kInt8: return {Element::kInt8, 1};
    case Type::kUInt8: return {Element::kUInt8, 1};
    default: throw std::runtime_error("a table of rows has an unexpected type");
  }
}

// A Reshape or Unsqueeze is a term times 1: the same numbers.
bool is_other(const std::vector<RowTerm>& terms, const RowTerm& t) {
  return t.op == RowOp::kMultiply && terms[t.b].op == RowOp::kConstant && terms[t.b].constant == 1.f && terms[t.a].width == t.width;
}

}  // namespace

RowProgram::RowProgram(const Rows& rows, int result) {
  const std::vector<RowTerm>& terms = rows.terms;
  std::vector<char> need(terms.size(), 0);
  need[result] = 1;
  for (int t = result; t >= 0; --t) {
    if (!need[t]) continue;
    if (terms[t].a >= 0) need[terms[t].a] = 1;
    if (terms[t].b >= 0 && !is_other(terms, terms[t])) need[terms[t].b] = 1;
  }
  std::map<int, size_t> place;   // by term: its step
  bool gathered = false;
  for (int t = 0; t <= result; ++t) {
    if (!need[t]) continue;
    const RowTerm& from = terms[t];
    if (is_other(terms, from)) {
      place[t] = place.at(from.a);
      continue;
    }
    RowStep to;
    to.op = from.op;
    to.width = from.width;
    to.constant = from.constant;
    if (from.a >= 0) {
      to.a = steps_[place.at(from.a)].out;
      to.width_a = terms[from.a].width;
    }
    if (from.b >= 0) {
      to.b = steps_[place.at(from.b)].out;
      to.width_b = terms[from.b].width;
    }
    if (from.op == RowOp::kGather) {
      const Stored s = stored(from.table->type);
      to.element = s.element;
      to.table = hold(*from.table, from.table->count * s.bytes);
      auto n = static_cast<size_t>(from.table->shape[0]);
      if (gathered && n != count_) throw std::runtime_error("tables of one row have different numbers of rows");
      count_ = n;
      gathered = true;
    }
    to.out = scratch_;
    scratch_ += (static_cast<size_t>(to.width) + 15) / 16 * 16;
    place[t] = steps_.size();
    steps_.push_back(to);
  }
}

const void* RowProgram::hold(const Constant& table, size_t bytes) {
  const auto* data = static_cast<const uint8_t*>(table.data);
  tables_.emplace_back(data, data + bytes);
  return tables_.back().data();
}

}  // namespace obert
