// Nodes in their order, and the tensors that they read and make.
#include "matcher_state.h"

#include <algorithm>
#include <iterator>

#include "match_rows.h"

namespace obert {

Match Matcher::run() {
  // Nodes of a GELU in parts wait for its erf, tanh or sigmoid: some are sums or factors, which would be taken by themselves.
  std::vector<char> waits(g_.nodes.size(), 0);
  for (int n = 0; n < static_cast<int>(g_.nodes.size()); ++n) {
    const auto gelu = is(n, "Tanh")      ? gelu_around_tanh(g_, n)
                      : is(n, "Erf")     ? gelu_around_erf(g_, n)
                      : is(n, "Sigmoid") ? swish_around_sigmoid(g_, n, kGeluSigmoidFactor)
                                         : std::nullopt;
    for (size_t i = 0; gelu && i < gelu->nodes.size(); ++i) waits[gelu->nodes[i]] = gelu->nodes[i] != n;
  }
  for (int n = 0; n < static_cast<int>(g_.nodes.size()); ++n) {
    if (barred_[n] || m_.claimed[n] || waits[n]) continue;
    reason_.clear();
    if (absorb(n)) {
      m_.claimed[n] = 1;
    } else if (!reason_.empty()) {
      m_.skips.push_back({n, reason_});
    }
  }
  claim_shape_arithmetic();
  return std::move(m_);
}

int Matcher::add(Op op) {
  op.picked = op.kind == OpKind::kPick || (!op.inputs.empty() && m_.ops[op.inputs[0]].picked);
  op.other_shape = op.other_shape || (!op.inputs.empty() && m_.ops[op.inputs[0]].other_shape);
  m_.ops.push_back(std::move(op));
  return static_cast<int>(m_.ops.size()) - 1;
}

int Matcher::import(int value, int width, const Quantization* q) {
  if (value < 0 || g_.values[value].is_constant || row_of_[value] >= 0) return -1;
  // Of a scalar or a narrower tensor the graph means something else: it is spread over the features.
  const Value& v = g_.values[value];
  if ((v.rank >= 0 && v.rank < 2) || (v.last >= 0 && v.last != width)) return -1;
  if (imports_[value] >= 0) {
    const Op& op = m_.ops[imports_[value]];
    return op.width == width && op.quantized == (q != nullptr) && !op.by_position ? imports_[value] : -1;
  }
  Op op;
  op.kind = OpKind::kImport;
  op.width = width;
  op.value = value;
  op.other_shape = v.rank >= 0 && v.rank != 3;
  if (q) {
    op.quantized = true;
    op.quantization = *q;
  }
  imports_[value] = add(op);
  return imports_[value];
}

int Matcher::tensor(int value, int width) {
  if (gathered(value, width)) return view(value).op;
  View v = view(value);
  if (!v.held()) return import(value, width);
  if (!v.plain() || m_.ops[v.op].width != width || v.form == Form::kQuantized) return -1;
  return v.form == Form::kDequantized ? dequantized(v.op) : v.op;
}

bool Matcher::gathered(int value, int width) {
  int term = value >= 0 ? row_of_[value] : -1;
  if (term < 0 || view(value).held()) return false;
  const RowTerm& t = m_.rows.terms[term];
  if (t.tail.size() != 1 || (width != 0 && t.width != width)) return false;
  Op op;
  op.kind = OpKind::kRows;
  op.width = t.width;
  op.row = term;
  op.value = m_.rows.indices[term];
  op.other_shape = rank_of(op.value) >= 0 && rank_of(op.value) != 2;
  View v;
  v.layout = rank_of(op.value) == 1 ? Layout::kMatrix : Layout::kTokens;
  v.op = add(op);
  m_.views[value] = v;
  return true;
}

bool Matcher::row(int n) {
  if (out(n) < 0) return false;
  int term = match_rows(g_, n, row_of_, m_.rows);
  if (term < 0) return false;
  row_of_[out(n)] = term;
  return true;
}

int Matcher::dequantized(int quantized) {
  for (size_t i = 0; i < m_.ops.size(); ++i)
    if (m_.ops[i].kind == OpKind::kDequantize && m_.ops[i].inputs[0] == quantized) return static_cast<int>(i);
  Op op;
  op.kind = OpKind::kDequantize;
  op.inputs = {quantized};
  op.width = m_.ops[quantized].width;
  op.quantization = m_.ops[quantized].quantization;
  return add(op);
}

bool Matcher::absorb(int n) {
  const std::string& op = node(n).op;
  if (row(n)) return true;
  if (op == "MatMul" || op == "Gemm") return product(n);
  if (op == "QuantizeLinear") return quantize(n);
  if (op == "DequantizeLinear") return dequantize(n);
  if (op == "Add") return sum(n);
  if (op == "Mul" || op == "Div") return scaled(n);
  if (op == "Reshape") return reshape(n);
  if (op == "Transpose") return transpose(n);
  if (op == "Gather" || op == "Slice") return cut(n) || pick(n);
  if (op == "Split") return split(n);
  if (op == "Squeeze") return squeeze(n);
  if (op == "Unsqueeze") return unsqueeze(n);
  if (op == "Expand") return expand(n);
  if (op == "Neg") return negate(n);
  if (op == "Concat") return turn(n);
  if (op == "Softmax") return softmax(n);
  if (op == "Attention") return attention(n);
  if (op == "RotaryEmbedding") return rotary_embedding(n);
  if (op == "IsNaN") return is_nan(n);
  if (op == "Where") return choose(n);
  if (op == "GatherElements") return pick_positions(n);
  if (op == "LayerNormalization" || op == "RMSNormalization") return layer_norm(n);
  if (op == "ReduceMean") return layer_norm_of(layer_norm_from_mean(g_, n)) || layer_norm_of(rms_norm_around_mean(g_, n));
  if (op == "Erf") return activation_of(gelu_around_erf(g_, n), Activation::kGeluErf);
  if (op == "Sigmoid")
    return activation_of(swish_around_sigmoid(g_, n, 1.f), Activation::kSilu) ||
           activation_of(swish_around_sigmoid(g_, n, kGeluSigmoidFactor), Activation::kGeluSigmoid);
  if (op == "Tanh" && activation_of(gelu_around_tanh(g_, n), Activation::kGeluTanh)) return true;
  if (op == "Gelu" || op == "Relu" || op == "Tanh" || op == "Swish") return activate(n);
  if (op == "Identity" || op == "Dropout") return pass(n);
  return false;
}

bool Matcher::pass(int n) {
  View v = view(in(n, 0));
  if (!v.held()) return false;
  if (node(n).outputs.size() > 1 && node(n).outputs[1] >= 0 && !g_.values[node(n).outputs[1]].consumers.empty())
    return false;
  return show(n, v);
}

void Matcher::claim_shape_arithmetic() {
  static const char* const kOps[] = {"Shape", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Mul", "Div",
                                     // what a packed matrix is put among, and waits for
                                     "ConstantOfShape", "Expand", "Abs", "Add", "QuantizeLinear", "DequantizeLinear",
                                     // of shapes to which masks and positions are spread
                                     "Equal", "Where",
                                     // of factors
                                     "Sqrt", "Reciprocal"};
  for (int n = static_cast<int>(g_.nodes.size()) - 1; n >= 0; --n) {
    if (m_.claimed[n] || barred_[n]) continue;
    if (std::none_of(std::begin(kOps), std::end(kOps), [&](const char* op) { return node(n).op == op; })) continue;
    bool inside = !node(n).outputs.empty();
    for (int value : node(n).outputs) {
      if (value < 0) continue;
      inside = inside && !g_.values[value].is_output && !g_.values[value].consumers.empty();
      for (int consumer : g_.values[value].consumers) inside = inside && feeds_shape(consumer, value);
    }
    if (inside) m_.claimed[n] = arithmetic_[n] = 1;
  }
}

bool Matcher::feeds_shape(int consumer, int value) const {
  if (arithmetic_[consumer] || unpacks_[consumer]) return true;
  if (m_.claimed[consumer] && factor_of_[consumer] == value) return true;
  if (!m_.claimed[consumer] || in(consumer, 0) == value) return false;
  const std::string& op = node(consumer).op;
  if (op == "Expand" || op == "Tile") return true;
  return (op == "Reshape" || op == "Slice") && view(out(consumer)).held();
}

double Densities::of(const Weights& weights) {
  const Constant& stored = weights.matrix ? *weights.matrix : *weights.packed.values;
  auto [place, fresh] = known_.try_emplace(stored.data, 0.0);
  if (fresh) {
    size_t kept = 0;
    for (size_t i = 0; i < stored.count; ++i) kept += stored.as<float>()[i] != 0.f;
    place->second = static_cast<double>(kept) / (static_cast<double>(weights.inputs) * weights.outputs);
  }
  return place->second;
}

Match match(const Graph& graph, const std::vector<char>& barred, const Reshapes& known, Densities& densities) {
  return Matcher(graph, barred, known, densities).run();
}

Match match(const Graph& graph, const Reshapes& known) {
  std::vector<char> barred(graph.nodes.size(), 0);
  Densities densities;
  return match(graph, barred, known, densities);
}

}  // namespace obert
