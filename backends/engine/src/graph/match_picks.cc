// One token of each sequence, as classifiers and embeddings take it.
#include "matcher_state.h"

#include <cstdint>

#include "constants.h"

namespace obert {
namespace {

bool is_one(const std::optional<std::vector<int64_t>>& list, int64_t x) { return list && list->size() == 1 && (*list)[0] == x; }

// The token that a Gather or Slice takes along axis 1; `keeps_axis`: the result is [batch, 1, width].
std::optional<int64_t> token_of(const Graph& g, const Node& n, bool& keeps_axis) {
  const auto input = [&](size_t i) { return i < n.inputs.size() ? n.inputs[i] : -1; };
  auto first = integers(g, input(1));
  if (!first || first->size() != 1) return std::nullopt;
  const int64_t token = (*first)[0];
  if (n.op == "Gather") {
    const size_t rank = g.constant(input(1))->shape.size();
    if (n.integer("axis", 0) != 1 || rank > 1) return std::nullopt;
    keeps_axis = rank == 1;
    return token;
  }
  auto end = integers(g, input(2));
  if (!end || end->size() != 1 || !is_one(integers(g, input(3)), 1)) return std::nullopt;
  if (input(4) >= 0 && !is_one(integers(g, input(4)), 1)) return std::nullopt;
  const bool last = token == -1 && (*end)[0] >= INT32_MAX;
  if (!last && (token == INT64_MAX || token == -1 || (*end)[0] != token + 1)) return std::nullopt;
  keeps_axis = true;
  return token;
}

}  // namespace

bool Matcher::pick(int n) {
  const View from = view(in(n, 0));
  // Along axis 1 of a matrix lie features.
  if (!from.plain() || from.layout == Layout::kPicked || g_.values[in(n, 0)].rank != 3) return false;
  bool keeps_axis = false;
  const auto token = token_of(g_, node(n), keeps_axis);
  if (!token || out(n) < 0) return false;
  int last = n;
  if (keeps_axis) {
    last = only_consumer(out(n));
    if (!is(last, "Squeeze") || in(last, 0) != out(n)) return false;
    if (!is_one(axes(g_, node(last)), 1) || out(last) < 0) return false;
    m_.claimed[last] = 1;
  }
  const Op& source = m_.ops[from.op];
  Op op;
  op.kind = OpKind::kPick;
  op.inputs = {from.op};
  op.width = source.width;
  op.quantized = source.quantized;
  op.quantization = source.quantization;
  op.token = *token;
  View v = from;
  v.op = add(op);
  v.layout = Layout::kPicked;
  return show(last, v);
}

}  // namespace obert
