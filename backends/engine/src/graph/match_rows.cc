#include "match_rows.h"

#include <algorithm>
#include <cmath>

#include "constants.h"

namespace obert {
namespace {

constexpr int64_t kWidest = 1 << 16;   // elements of a row that is worth gathering

class RowMatcher {
 public:
  RowMatcher(const Graph& g, int n, const std::vector<int>& term_of, Rows& rows)
      : g_(g), n_(g.nodes[n]), term_of_(term_of), rows_(rows) {}

  int run() {
    const std::string& op = n_.op;
    if (op == "Gather") return gather();
    int a = term(0);
    if (op == "Cast" || op == "Identity") return a >= 0 && n_.integer("to", 1) == static_cast<int>(Type::kFloat) ? a : -1;
    if (op == "Floor" && a >= 0) return add(RowOp::kFloor, a, -1, at(a).tail);
    if (op == "Concat") return concat();
    if (op == "Reshape" && a >= 0) return reshape(a);
    if (op == "Unsqueeze" && a >= 0) return unsqueeze(a);
    if (op == "DequantizeLinear" && a >= 0) return dequantize(a);
    if (op == "Add") return binary(RowOp::kAdd);
    if (op == "Sub") return binary(RowOp::kSubtract);
    if (op == "Mul") return binary(RowOp::kMultiply);
    if (op == "Div") return binary(RowOp::kDivide);
    return -1;
  }

 private:
  int input(size_t i) const { return i < n_.inputs.size() ? n_.inputs[i] : -1; }
  int term(size_t i) const { return input(i) >= 0 ? term_of_[input(i)] : -1; }
  const RowTerm& at(int t) const { return rows_.terms[t]; }

  int push(RowTerm t, int indices) {
    rows_.terms.push_back(std::move(t));
    rows_.indices.push_back(indices);
    return static_cast<int>(rows_.terms.size()) - 1;
  }
  // An index that one table has must be one that the other has.
  bool same_rows(int a, int b) const {
    return rows_.indices[a] == rows_.indices[b] && at(a).count == at(b).count;
  }
  static int width_of(const std::vector<int64_t>& tail) {
    int64_t n = 1;
    for (int64_t d : tail) n *= d;
    return static_cast<int>(n);
  }
  int add(RowOp op, int a, int b, std::vector<int64_t> tail) {
    RowTerm t;
    t.op = op;
    t.a = a;
    t.b = b;
    t.tail = std::move(tail);
    t.width = width_of(t.tail);
    t.count = std::max(at(a).count, b >= 0 ? at(b).count : 0);
    return push(std::move(t), rows_.indices[a] >= 0 ? rows_.indices[a] : rows_.indices[b]);
  }
  int constant(float x) {
    RowTerm t;
    t.op = RowOp::kConstant;
    t.constant = x;
    t.width = 1;
    return push(std::move(t), -1);
  }

  int gather() {
    const Constant* table = g_.constant(input(0));
    if (!table || n_.integer("axis", 0) != 0 || input(1) < 0 || g_.constant(input(1))) return -1;
    if (table->type != Type::kFloat && table->type != Type::kInt8 && table->type != Type::kUInt8 &&
        table->type != Type::kFloat16)
      return -1;
    if (table->shape.empty() || table->shape[0] < 1 || !table->data) return -1;
    RowTerm t;
    t.op = RowOp::kGather;
    t.table = table;
    int64_t width = 1;
    for (size_t i = 1; i < table->shape.size(); ++i) {
      if (table->shape[i] < 1 || width > kWidest / table->shape[i]) return -1;
      width *= table->shape[i];
      t.tail.push_back(table->shape[i]);
    }
    if (static_cast<uint64_t>(table->shape[0]) != table->count / static_cast<uint64_t>(width) ||
        table->count % static_cast<uint64_t>(width) != 0)
      return -1;
    t.width = static_cast<int>(width);
    t.count = table->shape[0];
    return push(std::move(t), input(1));
  }

  int concat() {
    int a = term(0), b = term(1);
    if (n_.inputs.size() != 2 || a < 0 || b < 0 || !same_rows(a, b)) return -1;
    if (at(a).tail.size() != 1 || at(b).tail.size() != 1 || n_.integer("axis", 0) != -1) return -1;
    int64_t width = at(a).tail[0] + at(b).tail[0];
    if (width > kWidest) return -1;
    return add(RowOp::kConcat, a, b, {width});
  }

  // Only what keeps the leading dimensions and the elements of a row.
  int reshape(int a) {
    auto target = integers(g_, input(1));
    if (!target || n_.integer("allowzero", 0) != 0) return -1;
    size_t lead = 0;
    while (lead < target->size() && (*target)[lead] == 0) ++lead;
    std::vector<int64_t> tail(target->begin() + static_cast<std::ptrdiff_t>(lead), target->end());
    if (lead == 0) return -1;
    int64_t n = 1;
    for (int64_t d : tail) {
      if (d < 1 || d > kWidest || n > kWidest) return -1;
      n *= d;
    }
    if (n != at(a).width) return -1;
    return same_numbers(a, tail);
  }

  // A term with the numbers of `a` in another shape.
  int same_numbers(int a, const std::vector<int64_t>& tail) {
    int one = constant(1.f);
    return add(RowOp::kMultiply, a, one, tail);
  }

  int unsqueeze(int a) {
    auto axes = integers(g_, input(1));
    if (!axes || axes->size() != 1 || (*axes)[0] != -1) return -1;
    std::vector<int64_t> tail = at(a).tail;
    tail.push_back(1);
    return same_numbers(a, tail);
  }

  int dequantize(int a) {
    auto q = quantization(g_, n_);
    if (!q) return -1;
    int zero = constant(static_cast<float>(q->zero_point - (q->is_signed ? 128 : 0)));
    int shifted = add(RowOp::kSubtract, a, zero, at(a).tail);
    int scale = constant(q->scale);
    return add(RowOp::kMultiply, shifted, scale, at(a).tail);
  }

  int binary(RowOp op) {
    int a = term(0), b = term(1);
    if (a < 0) return -1;
    if (b < 0) {
      auto s = scalar(g_, input(1));
      if (!s || !std::isfinite(*s)) return -1;
      int c = constant(*s);
      return add(op, a, c, at(a).tail);
    }
    if (!same_rows(a, b)) return -1;
    const auto &ta = at(a).tail, &tb = at(b).tail;
    bool runs = ta.size() == tb.size() && !tb.empty() && tb.back() == 1;
    for (size_t i = 0; runs && i + 1 < ta.size(); ++i) runs = ta[i] == tb[i];
    if (ta != tb && !runs) return -1;
    return add(op, a, b, ta);
  }

  const Graph& g_;
  const Node& n_;
  const std::vector<int>& term_of_;
  Rows& rows_;
};

}  // namespace

int match_rows(const Graph& graph, int n, const std::vector<int>& term_of, Rows& rows) {
  return RowMatcher(graph, n, term_of, rows).run();
}

}  // namespace obert
