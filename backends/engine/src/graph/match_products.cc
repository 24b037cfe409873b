// Products with constant matrices.
#include "matcher_state.h"

namespace obert {
namespace {

constexpr double kDenseFloat = 0.35; // share of kept weights above which ONNX Runtime's dense product is faster

}  // namespace

bool Matcher::product(int n) {
  View a = view(in(n, 0)), b = view(in(n, 1));
  if (node(n).op == "MatMul" && a.held() && b.held()) {
    if (a.layout == Layout::kProbabilities) return context(n, a, b);
    return scores(n, a, b);
  }
  if (node(n).op == "MatMul" && (a.layout == Layout::kHeads || a.layout == Layout::kFlatHeads) && a.held() && a.form != Form::kQuantized)
    return positions(n, a);
  return linear(n);
}

int Matcher::quantized_input(int value, int inputs) {
  View v = view(value);
  if (v.held())
    return v.plain() && v.form == Form::kDequantized && m_.ops[v.op].width == inputs ? v.op : -1;
  // DequantizeLinear(QuantizeLinear(x)) or DequantizeLinear(x) with x from outside.
  const Node* dq = g_.producer(value);
  if (!dq || dq->op != "DequantizeLinear" || dq->inputs.empty()) return -1;
  int dq_node = g_.values[value].producer;
  if (barred_[dq_node]) return -1;
  auto q = quantization(g_, *dq);
  if (!q) return -1;
  int quantized = dq->inputs[0];
  int op = -1;
  View inner = view(quantized);
  const Node* quantizer = g_.producer(quantized);
  if (inner.held()) {
    return -1;
  }
  if (quantizer && quantizer->op == "QuantizeLinear" && !barred_[g_.values[quantized].producer]) {
    auto mine = quantization(g_, *quantizer);
    int x = quantizer->inputs[0];
    if (!mine || !mine->same(*q) || mine->is_signed != q->is_signed || view(x).held()) return -1;
    int source = import(x, inputs);
    if (source < 0) return -1;
    View v2;
    v2.op = source;
    if (rank_of(x) == 2) v2.layout = Layout::kMatrix;
    m_.views[x] = v2;
    View made = quantized_view(v2, *q);
    m_.views[quantized] = made;
    m_.claimed[g_.values[quantized].producer] = 1;
    op = made.op;
  } else {
    op = import(quantized, inputs, &*q);
    if (op < 0) return -1;
    View made;
    made.op = op;
    made.form = Form::kQuantized;
    if (rank_of(quantized) == 2) made.layout = Layout::kMatrix;
    m_.views[quantized] = made;
  }
  View made = m_.views[quantized];
  // Every DequantizeLinear of the same tensor shows the same numbers.
  for (int consumer : g_.values[quantized].consumers) {
    const Node& c = node(consumer);
    if (c.op != "DequantizeLinear" || barred_[consumer] || m_.claimed[consumer] || c.outputs.empty()) continue;
    auto theirs = quantization(g_, c);
    if (!theirs || !theirs->same(*q) || theirs->is_signed != q->is_signed) continue;
    View shown = made;
    shown.form = Form::kDequantized;
    m_.views[c.outputs[0]] = shown;
    m_.claimed[consumer] = 1;
  }
  return op;
}

bool Matcher::linear(int n) {
  const Node& p = node(n);
  bool gemm = p.op == "Gemm";
  if (gemm && (p.integer("transA", 0) != 0 || p.real("alpha", 1.f) != 1.f || p.real("beta", 1.f) != 1.f))
    return fail("it is a Gemm with transA, alpha or beta");
  std::string why;
  auto found = matrix(g_, in(n, 1), gemm && p.integer("transB", 0) != 0, known_, why);
  if (!found) return fail(why.c_str());
  Weights* w = &found->weights;
  std::vector<int>& chain = found->nodes;
  for (int c : chain)
    if (barred_[c]) return fail("its matrix is read outside of the engine too");
  if (gemm && in(n, 2) >= 0) {
    auto bias = vector(g_, in(n, 2), static_cast<size_t>(w->outputs));
    if (!bias) return fail("its bias is not one constant for each output");
    w->bias = *bias;
    chain_of_bias(in(n, 2), chain);
  }
  int x = -1;
  if (w->scale.empty()) {
    if (densities_.of(*w) > kDenseFloat) return fail("its matrix is float32 and not sparse: ONNX Runtime is faster");
    x = tensor(in(n, 0), w->inputs);
    if (x < 0) return fail("its input is not held as float tokens of that width");
  } else {
    x = quantized_input(in(n, 0), w->inputs);
    if (x < 0) return fail("its input is not quantised by constants, one scale for the tensor");
  }
  for (int c : chain) m_.claimed[c] = 1;
  for (int c : found->unpacking) unpacks_[c] = 1;
  if (!found->unpacked.empty()) m_.reshapes[found->unpacked].blocks = w->packed.blocks;
  Op op;
  op.kind = OpKind::kLinear;
  op.inputs = {x};
  op.width = w->outputs;
  op.weights = static_cast<int>(m_.weights.size());
  m_.weights.push_back(std::move(*w));
  return show(n, add(op), in(n, 0));
}

void Matcher::chain_of_bias(int value, std::vector<int>& chain) const {
  if (!g_.constant(value) && g_.values[value].producer >= 0) chain.push_back(g_.values[value].producer);
}

}  // namespace obert
