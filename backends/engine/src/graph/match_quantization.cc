// Quantised tensors, and scores and probabilities that are rounded.
#include "matcher_state.h"

#include <cmath>

namespace obert {

bool Matcher::quantize(int n) {
  auto q = quantization(g_, node(n));
  int x = in(n, 0);
  if (!q) return false;
  gathered(x, 0);
  View v = view(x);
  if (!v.held()) return false;   // from outside: see quantized_input
  if (is_rounded(v.layout)) return round(n, v, *q);
  if (v.form == Form::kQuantized || !(v.factor > 0.f) || !shows_its_op(v)) return false;
  q->scale /= v.factor;   // quantising factor * x at a scale is quantising x at scale / factor
  if (v.form == Form::kDequantized) {
    if (alike(m_.ops[v.op].quantization, *q)) {
      v.form = Form::kQuantized;   // quantising what was just dequantised alike changes nothing
      return show(n, v);
    }
    v.op = dequantized(v.op);
    v.form = Form::kFloat;
  }
  return show(n, quantized_view(v, *q));
}

bool Matcher::alike(const Quantization& a, const Quantization& b) {
  return a.zero_point == b.zero_point && a.is_signed == b.is_signed && std::fabs(a.scale - b.scale) <= 1e-6f * a.scale;
}

bool Matcher::round(int n, View v, Quantization q) {
  const bool scores = v.layout != Layout::kProbabilities;
  if (scores && v.masks[0].used()) return fail("its scores are quantised after a mask was added");
  if (v.layout == Layout::kScores && (v.by_query.used() || v.by_key.used())) return fail("its scores are quantised after relative positions were added");
  if (v.form == Form::kQuantized || !(v.factor > 0.f)) return false;
  if (scores) q.scale /= v.factor;
  Quantization& rounding = scores ? v.score_rounding : v.probability_rounding;
  if (rounding.scale != 0.f && !alike(rounding, q)) return fail("its scores or probabilities are quantised twice");
  rounding = q;
  v.form = Form::kQuantized;
  return show(n, v);
}

bool Matcher::unround(int n, View v) {
  const bool scores = v.layout != Layout::kProbabilities;
  const Quantization& have = scores ? v.score_rounding : v.probability_rounding;
  auto q = quantization(g_, node(n));
  if (!q) return false;
  if (scores) q->scale /= v.factor;
  if (!alike(*q, have)) return false;
  v.form = Form::kFloat;
  return show(n, v);
}

View Matcher::quantized_view(View v, const Quantization& q) {
  for (size_t i = 0; i < m_.ops.size(); ++i) {
    const Op& o = m_.ops[i];
    if (o.kind == OpKind::kQuantize && o.inputs[0] == v.op && o.quantization.same(q) &&
        o.quantization.is_signed == q.is_signed) {
      v.op = static_cast<int>(i);
      v.form = Form::kQuantized;
      return v;
    }
  }
  Op op;
  op.kind = OpKind::kQuantize;
  op.inputs = {v.op};
  op.width = m_.ops[v.op].width;
  op.quantized = true;
  op.quantization = q;
  v.op = add(op);
  v.form = Form::kQuantized;
  return v;
}

bool Matcher::dequantize(int n) {
  View v = view(in(n, 0));
  if (!v.held()) v = quantized_import(n);
  if (!v.held() || v.form != Form::kQuantized) return false;
  if (is_rounded(v.layout)) return unround(n, v);
  const Quantization& have = m_.ops[v.op].quantization;
  auto q = quantization(g_, node(n));
  if (!q) {   // without a zero point the type is that of the tensor
    auto scale = scalar(g_, in(n, 1));
    if (in(n, 2) >= 0 || !scale) return false;
    q = Quantization{*scale, have.is_signed ? 128 : 0, have.is_signed};
  }
  q->scale /= v.factor;
  if (!alike(*q, have)) return false;
  v.form = Form::kDequantized;
  return show(n, v);
}

View Matcher::quantized_import(int n) {
  View v;
  int x = in(n, 0);
  if (x < 0 || g_.values[x].rank < 2 || g_.values[x].rank > 3 || g_.values[x].last < 1) return v;
  // What quantises a float from outside is claimed together with its product: see quantized_input.
  const Node* p = g_.producer(x);
  if (p && p->op == "QuantizeLinear") return v;
  auto q = quantization(g_, node(n));
  if (!q) return v;
  v.op = import(x, static_cast<int>(g_.values[x].last), &*q);
  v.form = Form::kQuantized;
  if (rank_of(x) == 2) v.layout = Layout::kMatrix;
  if (v.held()) m_.views[x] = v;
  return v;
}

}  // namespace obert
