// Sums, factors, activations and normalisations.
#include "matcher_state.h"

#include <algorithm>
#include <cmath>

namespace obert {
namespace {

constexpr float kHugeMask = 1e30f;   // factors beyond this are no factors

}  // namespace

bool Matcher::sum(int n) {
  int a = in(n, 0), b = in(n, 1);
  gathered(a, 0);
  gathered(b, 0);
  if (!view(a).held()) std::swap(a, b);
  View v = view(a);
  if (!v.held() || !keeps_rank(n, a)) return false;
  if (v.layout == Layout::kRelative || view(b).layout == Layout::kRelative) return add_relative(n, v, view(b));
  if (v.layout == Layout::kScores) return masked(n, v, b);
  if (v.layout == Layout::kTimesCosine || v.layout == Layout::kTurnedTimesSine) return rotate(n, v, view(b));
  if (!plain_float(a)) {
    if (!v.plain() || v.form != Form::kDequantized) return false;
    v.op = dequantized(v.op);
    v.form = Form::kFloat;
  }
  int width = m_.ops[v.op].width;
  if (auto bias = vector(g_, b, static_cast<size_t>(width))) return add_bias(n, v.op, *bias, b, a);
  if (g_.constant(b) || (m_.ops[v.op].picked && !view(b).held())) return false;
  int other = tensor(b, width);
  if (other < 0 || (!same_tokens(v.op, other) && !is_spread(v, other))) return false;
  if (m_.ops[v.op].other_shape && rank_of(a) != rank_of(b)) return false;
  Op op;
  op.kind = OpKind::kAdd;
  op.inputs = {v.op, other};
  op.width = width;
  return show(n, add(op), a);
}

bool Matcher::masked(int n, View v, int mask) {
  if (v.masks[1].used()) return fail("more than two masks are added to the scores of one attention");
  if (v.flat) return fail("a mask is added to scores whose batch and heads are joined");
  const char* why = nullptr;
  if (!may_mask(mask, false, why)) return fail(why);
  v.masks[v.masks[0].used() ? 1 : 0].value = mask;
  return show(n, v);
}

bool Matcher::add_bias(int n, int op, const std::vector<float>& bias, int value, int from) {
  const Op& producer = m_.ops[op];
  if (!g_.constant(value) && g_.values[value].producer >= 0) {
    if (barred_[g_.values[value].producer]) return false;
    m_.claimed[g_.values[value].producer] = 1;
  }
  const Weights* weights = producer.kind == OpKind::kLinear ? &m_.weights[producer.weights] : nullptr;
  if (weights && only_consumer(other_input(n, value)) == n && weights->bias.empty() && weights->outputs == producer.width) {
    m_.weights[producer.weights].bias = bias;
    return show(n, op, from);
  }
  Op shift;
  shift.kind = OpKind::kShift;
  shift.inputs = {op};
  shift.width = producer.width;
  shift.beta = bias;
  return show(n, add(shift), from);
}

bool Matcher::scale_features(int n, int x, int by) {
  const View v = view(x);
  const bool division = node(n).op == "Div";
  const auto width = static_cast<size_t>(m_.ops[v.op].width);
  Op op;
  op.kind = OpKind::kScale;
  op.width = m_.ops[v.op].width;
  if (const auto one = factor(by)) op.gamma.assign(width, *one);
  else if (auto each = vector(g_, by, width)) op.gamma = std::move(*each);
  else return false;
  for (float& x : op.gamma) {
    if (division) x = 1.f / x;
    if (!std::isfinite(x) || std::fabs(x) > kHugeMask) return false;
  }
  op.inputs = {tensor(x, op.width)};
  factor_of_[n] = by;
  return show(n, add(std::move(op)), x);
}

bool Matcher::scaled(int n) {
  int a = in(n, 0), b = in(n, 1);
  bool division = node(n).op == "Div";
  gathered(a, 0);
  if (!division) gathered(b, 0);
  if (!division && !view(a).held()) std::swap(a, b);
  View v = view(a);
  if (!v.held() || v.form == Form::kQuantized || !keeps_rank(n, a)) return false;
  if (!division && times_table(n, v, b)) return true;
  if (cut_heads(v)) return false;
  if (v.plain() && scale_features(n, a, b)) return true;
  if (!v.of_tokens() && v.layout != Layout::kProbabilities) {
    auto f = factor(b);
    if (!f || !std::isfinite(*f) || *f == 0 || std::fabs(*f) > kHugeMask) return false;
    if (v.masks[0].used()) return fail("its scores are scaled after a mask was added");
    const float scale = division ? 1.f / *f : *f;
    if (v.layout != Layout::kRelative) v.factor *= scale;
    v.by_query.factor *= scale;
    v.by_key.factor *= scale;
    factor_of_[n] = b;
    return show(n, v);
  }
  if (!division && weighs_tokens(a, b)) {
    Op op;
    op.kind = OpKind::kWeighTokens;
    op.inputs = {v.op, by_position(b, 1)};
    op.width = m_.ops[v.op].width;
    return op.inputs[1] >= 0 && show(n, add(op), a);
  }
  const View by = view(b);
  if (division || !v.plain() || !by.plain() || by.form == Form::kQuantized || m_.ops[v.op].width != m_.ops[by.op].width ||
      !same_tokens(v.op, by.op))
    return false;
  Op op;
  op.kind = OpKind::kMultiply;
  op.width = m_.ops[v.op].width;
  op.inputs = {tensor(a, op.width), tensor(b, op.width)};
  return show(n, add(op), a);
}

bool Matcher::weighs_tokens(int x, int weights) const {
  if (!plain_float(x) || view(x).layout != Layout::kTokens) return false;
  if (weights < 0 || g_.values[weights].is_constant || view(weights).held() || row_of_[weights] >= 0) return false;
  const std::vector<int64_t>& shape = g_.values[weights].shape;
  return shape.size() == 3 && shape[1] != 1 && shape[2] == 1;
}

std::optional<float> Matcher::factor(int value, int depth) const {
  constexpr int kDeepest = 8;
  if (auto constant = scalar(g_, value)) return constant;
  const Node* p = g_.producer(value);
  if (!p || p->inputs.empty() || depth == kDeepest || barred_[g_.values[value].producer]) return std::nullopt;
  if (p->op == "Cast") {
    // Of elements of a shape; what casts between floats is Identity by now.
    auto dims = shape_elements(g_, p->inputs[0], [this](int x) { return shape_of(x); });
    if (dims && dims->size() == 1 && dims->front().kind == Dim::kNumber) return static_cast<float>(dims->front().number);
    return factor(p->inputs[0], depth + 1);
  }
  const auto operand = [&](size_t i) { return i < p->inputs.size() ? factor(p->inputs[i], depth + 1) : std::nullopt; };
  if (p->op == "Sqrt" || p->op == "Reciprocal") {
    auto x = operand(0);
    return x ? std::optional<float>(p->op == "Sqrt" ? std::sqrt(*x) : 1.f / *x) : std::nullopt;
  }
  if (p->op != "Mul" && p->op != "Div") return std::nullopt;
  auto x = operand(0), y = operand(1);
  if (!x || !y) return std::nullopt;
  return p->op == "Mul" ? *x * *y : *x / *y;
}

bool Matcher::activate_as(int n, int x, Activation activation) {
  const View v = view(x);
  if (!v.plain() || v.form == Form::kQuantized) return false;
  Op op;
  op.kind = OpKind::kActivate;
  op.width = m_.ops[v.op].width;
  op.inputs = {tensor(x, op.width)};
  op.activation = activation;
  return show(n, add(op), x);
}

bool Matcher::activate(int n) {
  const std::string& op = node(n).op;
  if (op == "Relu") return activate_as(n, in(n, 0), Activation::kRelu);
  if (op == "Tanh") return activate_as(n, in(n, 0), Activation::kTanh);
  if (op == "Swish") {
    const float alpha = node(n).real("alpha", 1.f);
    return (alpha == 1.f && activate_as(n, in(n, 0), Activation::kSilu)) ||
           (alpha == kGeluSigmoidFactor && activate_as(n, in(n, 0), Activation::kGeluSigmoid));
  }
  auto approximate = node(n).strings.find("approximate");
  bool tanh = approximate != node(n).strings.end() && approximate->second == "tanh";
  return activate_as(n, in(n, 0), tanh ? Activation::kGeluTanh : Activation::kGeluErf);
}

bool Matcher::covers(const Pattern& p) const {
  return std::none_of(p.nodes.begin(), p.nodes.end(), [&](int n) { return barred_[n] || (m_.claimed[n] && n != p.square); });
}

bool Matcher::activation_of(const std::optional<Pattern>& p, Activation activation) {
  if (!p || !covers(*p) || !activate_as(p->last, p->x, activation)) return false;
  for (int n : p->nodes) m_.claimed[n] = 1;
  return true;
}

bool Matcher::layer_norm_of(const std::optional<Pattern>& p) {
  if (!p || !covers(*p)) return false;
  Op op;
  op.kind = OpKind::kLayerNorm;
  op.width = static_cast<int>(p->gamma.size());
  op.gamma = p->gamma;
  op.beta = p->beta;
  op.epsilon = p->epsilon;
  op.centred = p->centred;
  if (!over_last(p->axis, p->x) || !normalised(p->last, p->x, std::move(op))) return false;
  for (int n : p->nodes) m_.claimed[n] = 1;
  for (int value : p->constants) claim_constant_chain(value);
  return true;
}

bool Matcher::normalised(int n, int value, Op op) {
  View v = view(value);
  const bool each = v.held() && whole_heads(v);
  if (each && (v.head_dim != op.width || v.form == Form::kQuantized || v.factor != 1.f)) return false;
  const int x = each ? float_heads(v) : tensor(value, op.width);
  if (x < 0) return false;
  op.inputs = {x};
  if (!each) return show(n, add(op), value);
  op.head_dim = op.width;
  op.width = m_.ops[x].width;
  v.op = add(op);
  v.form = Form::kFloat;
  return show(n, v);
}

bool Matcher::layer_norm(int n) {
  auto gamma = vector(g_, in(n, 1));
  if (!gamma) return fail("its scale is no constant vector");
  if (!over_last(node(n).integer("axis", -1), in(n, 0))) return fail("it normalises over more than the last axis");
  for (size_t i = 1; i < node(n).outputs.size(); ++i)
    if (node(n).outputs[i] >= 0 && !g_.values[node(n).outputs[i]].consumers.empty())
      return fail("its mean or deviation is read");
  Op op;
  op.kind = OpKind::kLayerNorm;
  op.width = static_cast<int>(gamma->size());
  op.gamma = *gamma;
  if (in(n, 2) >= 0) {
    auto b = vector(g_, in(n, 2), gamma->size());
    if (!b) return fail("its bias is no constant vector");
    op.beta = *b;
  }
  op.epsilon = node(n).real("epsilon", 1e-5f);
  op.centred = node(n).op == "LayerNormalization";
  if (!normalised(n, in(n, 0), std::move(op))) return fail("its input is not held as float tokens or heads of that width");
  for (size_t i : {1, 2}) claim_constant_chain(in(n, i));
  return true;
}

void Matcher::claim_constant_chain(int value) {
  if (value < 0 || g_.constant(value)) return;
  int p = g_.values[value].producer;
  if (p >= 0 && !barred_[p] && only_consumer(value) >= 0) m_.claimed[p] = 1;
}

}  // namespace obert
