// Rotary position embeddings, as they are written in torch: x cos + [-second half of x, first half of x] sin.
#include "matcher_state.h"

#include "constants.h"

namespace obert {

bool Matcher::negate(int n) {
  View v = view(in(n, 0));
  if (!v.held() || v.layout != Layout::kSecondHalf) return false;
  v.layout = Layout::kMinusSecondHalf;
  return show(n, v);
}

bool Matcher::turn(int n) {
  if (node(n).inputs.size() != 2) return false;
  const View first = view(in(n, 0)), second = view(in(n, 1));
  const int64_t axis = node(n).integer("axis", 0);
  if (!first.held() || first.layout != Layout::kMinusSecondHalf || second.layout != Layout::kFirstHalf) return false;
  if (!same_heads(first, second) || (axis != 3 && axis != -1)) return false;
  View v = first;
  v.layout = Layout::kTurned;
  return show(n, v);
}

bool Matcher::times_table(int n, View v, int table) {
  if (!whole_heads(v) && v.layout != Layout::kTurned) return false;
  const bool turned = v.layout == Layout::kTurned;
  if (!turned) v.heads = v.layout;
  if (v.head_dim % 2 != 0) return false;
  v.table = position_table(table, v.heads, v.head_dim);
  if (v.table < 0) return false;
  v.layout = turned ? Layout::kTurnedTimesSine : Layout::kTimesCosine;
  return show(n, v);
}

bool Matcher::rotate(int n, const View& a, const View& b) {
  const bool first = a.layout == Layout::kTimesCosine;
  const View &plain = first ? a : b, &turned = first ? b : a;
  if (!b.held() || plain.layout != Layout::kTimesCosine || turned.layout != Layout::kTurnedTimesSine || !same_heads(a, b)) return false;
  const int cosine = by_position(plain.table, plain.head_dim), sine = by_position(turned.table, plain.head_dim);
  if (cosine < 0 || sine < 0) return false;
  Op op;
  op.kind = OpKind::kRotary;
  op.inputs = {float_heads(plain), cosine, sine};
  op.width = m_.ops[plain.op].width;
  op.head_dim = plain.head_dim;
  View v = plain;
  v.op = add(op);
  v.form = Form::kFloat;
  v.layout = plain.heads;
  v.table = -1;
  return show(n, v);
}

int Matcher::position_table(int value, Layout heads, int width) {
  if (value < 0 || view(value).held() || row_of_[value] >= 0) return -1;
  const Value& v = g_.values[value];
  const std::vector<int64_t>& shape = v.is_constant ? v.constant.shape : v.shape;
  if (v.is_constant && (v.constant.type != Type::kFloat || !v.constant.data || !whole(v.constant))) return -1;
  if (shape.size() < 2 || shape.size() > 4 || shape.back() != width) return -1;
  // Aligned at its end with [batch, heads, sequence, head_dim] or [batch, sequence, heads, head_dim].
  const auto size = [&](size_t i) { return i + shape.size() < 4 ? 1 : shape[i + shape.size() - 4]; };
  const bool in_order = heads == Layout::kSequenceHeads;
  if (size(in_order ? 2 : 1) != 1 || size(in_order ? 1 : 2) == 1) return -1;
  const Node* made = g_.producer(value);
  if (!made || made->op != "Unsqueeze" || barred_[v.producer] || made->inputs.size() != 2 || shape.size() != 4) return value;
  const auto axes = integers(g_, made->inputs[1]);
  const int below = made->inputs[0];
  if (!axes || axes->size() != 1 || (*axes)[0] != (in_order ? 2 : 1) || below < 0 || g_.values[below].is_constant ||
      view(below).held() || row_of_[below] >= 0 || g_.values[below].last != width)
    return value;
  m_.claimed[v.producer] = 1;
  return below;
}

int Matcher::by_position(int table, int width) {
  if (imports_[table] >= 0) return m_.ops[imports_[table]].by_position && m_.ops[imports_[table]].width == width ? imports_[table] : -1;
  Op op;
  op.kind = OpKind::kImport;
  op.value = table;
  op.width = width;
  op.by_position = true;
  imports_[table] = add(op);
  return imports_[table];
}

}  // namespace obert
