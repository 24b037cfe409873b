// Heads, scores, probabilities, and what comes of them.
#include "matcher_state.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace obert {
namespace {

constexpr int kMostHeads = 1 << 10;   // that share one

}  // namespace

std::optional<std::vector<Dim>> Matcher::shape_of(const View& v) const {
  if (!v.held()) return std::nullopt;
  Dim batch{Dim::kBatch, 0}, length{Dim::kLength, 0};
  int width = m_.ops[v.op].width;
  Dim features = Dim::of(width);
  if (v.layout == Layout::kTokens) return std::vector<Dim>{batch, length, features};
  if (v.layout == Layout::kMatrix) return std::vector<Dim>{Dim{}, features};
  if (v.layout == Layout::kPicked) return std::vector<Dim>{batch, features};
  Dim heads = Dim::of(width / v.head_dim * v.group), size = Dim::of(v.head_dim);
  if (v.layout == Layout::kStackedHeads)
    return std::vector<Dim>{batch, length, Dim::of(v.parts), Dim::of(width / v.parts / v.head_dim), size};
  switch (v.layout) {
    case Layout::kSequenceHeads: return std::vector<Dim>{batch, length, heads, size};
    case Layout::kHeads: return std::vector<Dim>{batch, heads, length, size};
    case Layout::kHeadsLast: return std::vector<Dim>{batch, heads, size, length};
    case Layout::kFlatHeads: return std::vector<Dim>{Dim{}, length, size};
    case Layout::kFlatHeadsLast: return std::vector<Dim>{Dim{}, size, length};
    case Layout::kStackedPart: return std::vector<Dim>{batch, length, Dim::of(1), heads, size};
    case Layout::kSharedHeads: return std::vector<Dim>{batch, heads, Dim::of(1), length, size};
    case Layout::kRepeatedHeads: return std::vector<Dim>{batch, Dim::of(width / v.head_dim), Dim::of(v.group), length, size};
    case Layout::kFirstHalf: case Layout::kSecondHalf: case Layout::kMinusSecondHalf: case Layout::kTurned:
    case Layout::kTimesCosine: case Layout::kTurnedTimesSine: case Layout::kPositions: return std::nullopt;
    default:
      if (v.flat) return std::vector<Dim>{Dim{}, length, length};
      return std::vector<Dim>{batch, heads, length, length};
  }
}

bool Matcher::reaches(const std::vector<Dim>& target, const std::vector<Dim>& wanted) {
  if (target.size() != wanted.size()) return false;
  int open = 0;
  for (size_t i = 0; i < target.size(); ++i) {
    const Dim &t = target[i], &w = wanted[i];
    if (t.is(-1) && ++open == 1) continue;
    if (t.is(0) && i < 2 && w.kind == Dim::kBatch + static_cast<int>(i)) continue;
    if (w.kind == Dim::kNumber ? !t.is(w.number) : w.kind != Dim::kUnknown && !t.may_be(w.kind)) return false;
  }
  return open < 2;
}

bool Matcher::reshape(int n) {
  View v = view(in(n, 0));
  // Of tokens that are no sequences none can be made.
  if (!v.held() || m_.ops[v.op].other_shape) return false;
  if (out(n) < 0) return false;
  auto known = known_.find(g_.values[out(n)].name);
  if (known != known_.end()) {
    v.layout = known->second.layout;
    v.head_dim = known->second.head_dim;
    v.parts = known->second.parts;
    v.flat = known->second.flat;
    if (v.group != 1 && v.layout == Layout::kTokens) return false;
    return m_.ops[v.op].width % std::max(1, v.head_dim * std::max(1, v.parts)) == 0 && show(n, v);
  }
  auto target = shape_elements(g_, in(n, 1), [this](int value) { return shape_of(value); });
  if (!target) return false;
  int width = m_.ops[v.op].width;
  auto becomes = [&](Layout layout, int head_dim, int parts = 0, bool flattened = false) {
    View w = v;
    w.layout = layout;
    w.head_dim = head_dim;
    w.parts = parts;
    w.flat = flattened;
    if (reaches(*target, *shape_of(w))) {
      m_.views[out(n)] = w;
      Reshaped& made = m_.reshapes[g_.values[out(n)].name];
      made.layout = layout, made.head_dim = head_dim, made.parts = parts, made.flat = flattened;
      return true;
    }
    return false;
  };
  const auto joined = [&] {
    const Dim& rows = target->front();
    return target->size() == 2 && (*target)[1].is(width) && rows.kind != Dim::kBatch && !rows.is(0) && becomes(Layout::kMatrix, 0);
  };
  switch (v.layout) {
    case Layout::kTokens: case Layout::kMatrix: {
      if (target->size() == 2) return joined();
      if (target->size() == 3) return becomes(Layout::kTokens, 0);
      if (target->size() != 4 && target->size() != 5) return false;
      Dim size = target->back();
      const Dim& count = (*target)[target->size() - 2];   // of heads, where their size is left open
      if (size.is(-1) && target->size() == 4 && count.kind == Dim::kNumber && count.number > 0 && width % count.number == 0)
        size = Dim::of(width / count.number);
      if (size.kind != Dim::kNumber || size.number < 1 || width % size.number != 0) return false;
      if (target->size() == 5) {
        const Dim& parts = (*target)[2];
        if (parts.kind != Dim::kNumber || parts.number < 1 || width / size.number % parts.number != 0) return false;
        return becomes(Layout::kStackedHeads, static_cast<int>(size.number), static_cast<int>(parts.number));
      }
      return becomes(Layout::kSequenceHeads, static_cast<int>(size.number));
    }
    case Layout::kSequenceHeads:
      if (v.group != 1) return false;
      if (target->size() == 2) return joined();
      return target->size() == 3 ? becomes(Layout::kTokens, 0) : becomes(Layout::kSequenceHeads, v.head_dim);
    case Layout::kHeads:
      return target->size() == 3 ? joins(target->front(), width / v.head_dim * v.group) && becomes(Layout::kFlatHeads, v.head_dim)
                                 : becomes(Layout::kHeads, v.head_dim);
    case Layout::kRepeatedHeads:
      return target->size() == 3 ? joins(target->front(), width / v.head_dim * v.group) && becomes(Layout::kFlatHeads, v.head_dim)
                                 : becomes(Layout::kHeads, v.head_dim);
    case Layout::kFlatHeads:
      return becomes(Layout::kHeads, v.head_dim);
    case Layout::kFlatHeadsLast:
      return becomes(Layout::kHeadsLast, v.head_dim);
    case Layout::kScores: case Layout::kProbabilities: case Layout::kRelative: {
      const bool three = target->size() == 3;
      return (!three || joins(target->front(), width / v.head_dim)) && becomes(v.layout, v.head_dim, 0, three);
    }
    default:
      return false;
  }
}

bool Matcher::transpose(int n) {
  View v = view(in(n, 0));
  auto found = node(n).int_lists.find("perm");
  if (!v.held() || found == node(n).int_lists.end()) return false;
  const std::vector<int64_t>& perm = found->second;
  const std::vector<int64_t> swap_heads = {0, 2, 1, 3}, heads_last = {0, 2, 3, 1}, swap_last = {0, 1, 3, 2};
  const std::vector<int64_t> back = {0, 3, 1, 2}, swap_flat = {0, 2, 1};
  if (v.layout == Layout::kRelative) {
    if (perm != (v.flat ? swap_flat : swap_last)) return false;
    turn_relative(v);
    return show(n, v);
  }
  if (v.layout == Layout::kSequenceHeads && perm == swap_heads) v.layout = Layout::kHeads;
  else if (v.layout == Layout::kSequenceHeads && perm == heads_last) v.layout = Layout::kHeadsLast;
  else if (v.layout == Layout::kHeads && perm == swap_heads) v.layout = Layout::kSequenceHeads;
  else if (v.layout == Layout::kHeads && perm == swap_last) v.layout = Layout::kHeadsLast;
  else if (v.layout == Layout::kHeadsLast && perm == swap_last) v.layout = Layout::kHeads;
  else if (v.layout == Layout::kHeadsLast && perm == back) v.layout = Layout::kSequenceHeads;
  else if (v.layout == Layout::kFlatHeads && perm == swap_flat) v.layout = Layout::kFlatHeadsLast;
  else if (v.layout == Layout::kFlatHeadsLast && perm == swap_flat) v.layout = Layout::kFlatHeads;
  else return false;
  return show(n, v);
}

bool Matcher::unsqueeze(int n) {
  View v = view(in(n, 0));
  if (!v.held() || v.layout != Layout::kHeads || v.group != 1) return false;
  const auto along = axes(g_, node(n));
  if (!along || along->size() != 1 || ((*along)[0] != 2 && (*along)[0] != -3)) return false;
  v.layout = Layout::kSharedHeads;
  return show(n, v);
}

bool Matcher::expand(int n) {
  View v = view(in(n, 0));
  if (!v.held() || v.layout != Layout::kSharedHeads || out(n) < 0) return false;
  const std::string& name = g_.values[out(n)].name;
  const auto known = known_.find(name);
  if (known != known_.end()) {
    v.group = known->second.group;
  } else {
    const auto target = shape_elements(g_, in(n, 1), [this](int value) { return shape_of(value); });
    if (!target || target->size() != 5) return false;
    const std::vector<Dim> have = *shape_of(v);
    for (size_t i = 0; i < have.size(); ++i)
      if (i != 2 && !(*target)[i].leaves(have[i])) return false;
    const Dim& group = (*target)[2];
    if (group.kind != Dim::kNumber || group.number < 1 || group.number > kMostHeads) return fail("how many heads share one is not known");
    v.group = static_cast<int>(group.number);
  }
  m_.reshapes[name].group = v.group;
  v.layout = Layout::kRepeatedHeads;
  return show(n, v);
}

bool Matcher::share(const View& q, const View& other) const {
  return q.group == 1 && q.head_dim == other.head_dim && m_.ops[q.op].width == m_.ops[other.op].width * other.group;
}

bool Matcher::scores(int n, const View& q, const View& k) {
  const bool joined = q.layout == Layout::kFlatHeads && k.layout == Layout::kFlatHeadsLast;
  if ((!joined && (q.layout != Layout::kHeads || k.layout != Layout::kHeadsLast)) || q.form == Form::kQuantized || k.form == Form::kQuantized)
    return fail("it multiplies two computed tensors, and not queries by keys");
  if (!share(q, k)) return fail("queries and keys differ in heads or size");
  View v = q;
  v.op = float_heads(q);
  v.key = float_heads(k);
  v.form = Form::kFloat;
  v.layout = Layout::kScores;
  v.flat = joined;
  v.factor = q.factor * k.factor;
  return show(n, v);
}

bool Matcher::is_nan(int n) {
  View v = view(in(n, 0));
  if (!v.held() || v.layout != Layout::kProbabilities) return false;
  v.layout = Layout::kNotANumber;
  return show(n, v);
}

bool Matcher::nan_to_zero(int n) {
  View flag = view(in(n, 0)), p = view(in(n, 2));
  auto zero = scalar(g_, in(n, 1));
  if (!flag.held() || flag.layout != Layout::kNotANumber || !p.held() || p.layout != Layout::kProbabilities) return false;
  if (flag.op != p.op || flag.key != p.key || !zero || *zero != 0.f) return false;
  p.nan_to_zero = true;
  return show(n, p);
}

bool Matcher::choose(int n) {
  if (nan_to_zero(n)) return true;
  for (size_t i : {1, 2}) {
    const View v = view(in(n, i));
    const auto number = scalar(g_, in(n, 3 - i));
    if (!v.held() || !number) continue;
    if (v.layout == Layout::kScores) return fill(n, v, *number, i == 2);
    if (v.layout == Layout::kProbabilities && *number == 0.f) return clear(n, v, i == 2);
  }
  return false;
}

bool Matcher::fill(int n, View v, float number, bool if_true) {
  constexpr float kShut = -1e30f;   // added to any score, it swallows it
  if (!(number <= kShut)) return fail("its masked scores become a number that is not far below all others");
  if (v.masks[1].used()) return fail("its scores are masked more than twice");
  if (v.flat) return fail("its scores are masked while batch and heads are joined");
  const int condition = before_spread(in(n, 0), *shape_of(v));
  const char* why = nullptr;
  if (!may_mask(condition, true, why)) return fail(why);
  v.masks[v.masks[0].used() ? 1 : 0] = {condition, if_true ? number : 0.f, if_true ? 0.f : number};
  return show(n, v);
}

bool Matcher::clear(int n, View v, bool if_true) {
  if (v.flat) return fail("its probabilities are masked while batch and heads are joined");
  const int condition = before_spread(in(n, 0), *shape_of(v));
  const float masked = if_true ? v.masks[0].if_true : v.masks[0].if_false;
  if (condition != v.masks[0].value || v.masks[1].used() || !(masked < 0.f))
    return fail("its probabilities become 0 elsewhere than its scores were masked");
  // A row without any key then has no probability at all.
  (if_true ? v.masks[0].if_true : v.masks[0].if_false) = -std::numeric_limits<float>::infinity();
  v.nan_to_zero = true;
  return show(n, v);
}

bool Matcher::softmax(int n) {
  View v = view(in(n, 0));
  int64_t axis = node(n).integer("axis", -1);
  if (!v.held() || v.layout != Layout::kScores) return fail("its input is no product of queries and keys");
  bool implied = node(n).ints.count("axis") == 0 && node(n).since < 13;   // was axis 1, flattened
  if ((axis != -1 && axis != (v.flat ? 2 : 3)) || implied) return fail("it is not over the last axis");
  v.layout = Layout::kProbabilities;
  return show(n, v);
}

bool Matcher::may_mask(int value, bool booleans, const char*& why) const {
  why = "what is added to its scores is computed in the engine";
  if (value < 0 || view(value).held() || row_of_[value] >= 0) return false;
  const Constant* c = g_.constant(value);
  why = "what is added to its scores is no float constant";
  return !c || (c->data && (c->type == Type::kFloat || (booleans && c->type == Type::kBool)));
}

bool Matcher::attention(int n) {
  const Node& p = node(n);
  View q = view(in(n, 0)), k = view(in(n, 1)), v = view(in(n, 2));
  if (!q.held() || !k.held() || !v.held()) return fail("it reads queries, keys or values that the engine does not hold");
  for (size_t i = 4; i < p.inputs.size(); ++i)
    if (p.inputs[i] >= 0) return fail("it has a cache, or sequences of given lengths");
  for (size_t i = 1; i < p.outputs.size(); ++i)
    if (p.outputs[i] >= 0 && (g_.values[p.outputs[i]].is_output || !g_.values[p.outputs[i]].consumers.empty()))
      return fail("its scores, or keys and values for a cache, are read");
  if (p.integer("is_causal", 0) != 0 || p.real("softcap", 0.f) != 0.f) return fail("it is causal, or caps its scores");
  const bool tokens = q.layout == Layout::kTokens;
  if (tokens) {
    const int64_t heads = p.integer("q_num_heads", 0), shared = p.integer("kv_num_heads", 0);
    const int width = m_.ops[q.op].width;
    if (heads < 1 || shared < 1 || heads % shared != 0 || width % heads != 0) return fail("its queries and keys differ in heads");
    q.head_dim = k.head_dim = v.head_dim = static_cast<int>(width / heads);
  }
  for (View* x : {&q, &k, &v}) {
    const int width = m_.ops[x->op].width;
    if (tokens && x != &q && width != q.head_dim * p.integer("kv_num_heads", 0)) return fail("its queries and keys differ in size");
    if (x != &q && x->group == 1) x->group = std::max(1, m_.ops[q.op].width / width);
    if (x->layout != (tokens ? Layout::kTokens : Layout::kHeads) || x->form == Form::kQuantized || !share(q, *x))
      return fail("its queries, keys and values differ in heads or size");
  }
  if (v.factor != 1.f) return fail("its values are scaled");
  const char* why = nullptr;
  if (in(n, 3) >= 0 && !may_mask(in(n, 3), true, why)) return fail(why);
  Op op;
  op.kind = OpKind::kAttention;
  op.inputs = {float_heads(q), float_heads(k), float_heads(v)};
  op.width = m_.ops[q.op].width;
  op.head_dim = q.head_dim;
  op.scale = q.factor * k.factor * p.real("scale", 1.f / std::sqrt(static_cast<float>(q.head_dim)));
  op.masks[0] = {in(n, 3), 0.f, -std::numeric_limits<float>::infinity()};
  op.nan_to_zero = true;   // as ONNX Runtime has it where a mask leaves no key
  View y;
  y.op = add(op);
  y.layout = q.layout;
  y.head_dim = tokens ? 0 : q.head_dim;
  return show(n, y);
}

bool Matcher::context(int n, const View& p, const View& value) {
  if (value.layout != (p.flat ? Layout::kFlatHeads : Layout::kHeads) || value.form == Form::kQuantized || !share(p, value) ||
      value.factor != 1.f)
    return fail("it multiplies probabilities by something that is no values of the same heads");
  Op op;
  op.kind = OpKind::kAttention;
  op.inputs = {p.op, p.key, float_heads(value)};
  op.width = m_.ops[p.op].width;
  op.head_dim = p.head_dim;
  op.scale = p.factor;
  for (int i : {0, 1}) op.masks[i] = p.masks[i];
  op.by_query = p.by_query;
  op.by_key = p.by_key;
  op.nan_to_zero = p.nan_to_zero;
  op.score_rounding = p.score_rounding;
  op.probability_rounding = p.probability_rounding;
  View v;
  v.op = add(op);
  v.layout = value.layout;
  v.head_dim = p.head_dim;
  return show(n, v);
}

}  // namespace obert
