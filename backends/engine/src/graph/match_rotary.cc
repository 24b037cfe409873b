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
  View v = plain;
  v.layout = plain.heads;
  v.table = -1;
  return rotated(n, v, by_position(plain.table, plain.head_dim), by_position(turned.table, plain.head_dim));
}

bool Matcher::rotated(int n, const View& x, int cosine, int sine) {
  if (cosine < 0 || sine < 0) return false;
  Op op;
  op.kind = OpKind::kRotary;
  op.inputs = {float_heads(x), cosine, sine};
  op.width = m_.ops[x.op].width;
  op.head_dim = x.head_dim;
  View v = x;
  v.op = add(op);
  v.form = Form::kFloat;
  return show(n, v);
}

bool Matcher::rotary_embedding(int n) {
  const Node& p = node(n);
  View x = view(in(n, 0));
  const bool tokens = x.layout == Layout::kTokens;
  if (!x.held() || x.form == Form::kQuantized || (!tokens && x.layout != Layout::kHeads) || (tokens && !x.plain())) return false;
  if (tokens) {
    const int64_t heads = p.integer("num_heads", 0);
    if (heads < 1 || m_.ops[x.op].width % heads != 0) return false;
    x.head_dim = static_cast<int>(m_.ops[x.op].width / heads);
  }
  const int64_t some = p.integer("rotary_embedding_dim", 0);
  if (p.integer("interleaved", 0) != 0 || in(n, 3) >= 0 || x.head_dim % 2 != 0 || (some != 0 && some != x.head_dim)) return false;
  // [batch, sequence, head_dim / 2], where no indices choose rows of it.
  for (size_t i : {1, 2}) {
    const int table = in(n, i);
    if (table < 0 || view(table).held() || row_of_[table] >= 0) return false;
    const Value& v = g_.values[table];
    const std::vector<int64_t>& shape = v.is_constant ? v.constant.shape : v.shape;
    if (v.is_constant && (v.constant.type != Type::kFloat || !v.constant.data || !whole(v.constant))) return false;
    if (shape.size() != 3 || shape.back() != x.head_dim / 2) return false;
  }
  return rotated(n, x, by_position(in(n, 1), x.head_dim / 2), by_position(in(n, 2), x.head_dim / 2));
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
