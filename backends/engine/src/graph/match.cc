#include "matcher.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "constants.h"
#include "match_rows.h"
#include "patterns.h"
#include "shape_values.h"

namespace obert {
namespace {

constexpr float kHugeMask = 1e30f;   // factors beyond this are no factors
constexpr double kDenseFloat = 0.35; // share of kept weights above which ONNX Runtime's dense product is faster

// One pass over the nodes. `barred` nodes are left alone whatever they look like.
class Matcher {
 public:
  Matcher(const Graph& graph, const std::vector<char>& barred, const Reshapes& known, Densities& densities)
      : g_(graph), barred_(barred), known_(known), densities_(densities) {
    m_.views.resize(g_.values.size());
    m_.claimed.assign(g_.nodes.size(), 0);
    imports_.assign(g_.values.size(), -1);
    row_of_.assign(g_.values.size(), -1);
    arithmetic_.assign(g_.nodes.size(), 0);
    unpacks_.assign(g_.nodes.size(), 0);
  }

  Match run() {
    for (int n = 0; n < static_cast<int>(g_.nodes.size()); ++n) {
      if (barred_[n] || m_.claimed[n]) continue;
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

 private:
  const Node& node(int n) const { return g_.nodes[n]; }
  int in(int n, size_t i) const { return g_.input(n, i); }
  int out(int n) const { return node(n).outputs.empty() ? -1 : node(n).outputs[0]; }

  bool fail(const char* why) {
    reason_ = why;
    return false;
  }

  View view(int value) const { return value >= 0 ? m_.views[value] : View{}; }
  bool plain_float(int value) const {
    View v = view(value);
    return v.plain() && v.form == Form::kFloat;
  }

  bool show(int n, const View& v) {
    int value = out(n);
    if (value < 0) return false;
    m_.views[value] = v;
    return true;
  }
  bool show(int n, int op) {
    View v;
    v.op = op;
    v.form = m_.ops[op].quantized ? Form::kQuantized : Form::kFloat;
    return show(n, v);
  }
  int add(Op op) {
    m_.ops.push_back(std::move(op));
    return static_cast<int>(m_.ops.size()) - 1;
  }

  // A value from outside as a token tensor of `width` features.
  int import(int value, int width, const Quantization* q = nullptr) {
    if (value < 0 || g_.values[value].is_constant || row_of_[value] >= 0) return -1;
    // Of a scalar or a narrower tensor the graph means something else: it is spread over the features.
    const Value& v = g_.values[value];
    if ((v.rank >= 0 && v.rank < 2) || (v.last >= 0 && v.last != width)) return -1;
    if (imports_[value] >= 0) {
      const Op& op = m_.ops[imports_[value]];
      return op.width == width && op.quantized == (q != nullptr) ? imports_[value] : -1;
    }
    Op op;
    op.kind = OpKind::kImport;
    op.width = width;
    op.value = value;
    if (q) {
      op.quantized = true;
      op.quantization = *q;
    }
    imports_[value] = add(op);
    return imports_[value];
  }

  // The float tensor that `value` shows: held, dequantised for it, or imported.
  int tensor(int value, int width) {
    if (gathered(value, width)) return view(value).op;
    View v = view(value);
    if (!v.held()) return import(value, width);
    if (!v.plain() || m_.ops[v.op].width != width || v.form == Form::kQuantized) return -1;
    return v.form == Form::kDequantized ? dequantized(v.op) : v.op;
  }

  // Makes a tensor of rows that were gathered and unpacked; 0: of any width.
  bool gathered(int value, int width) {
    int term = value >= 0 ? row_of_[value] : -1;
    if (term < 0 || view(value).held()) return false;
    const RowTerm& t = m_.rows.terms[term];
    if (t.tail.size() != 1 || (width != 0 && t.width != width)) return false;
    Op op;
    op.kind = OpKind::kRows;
    op.width = t.width;
    op.row = term;
    op.value = m_.rows.indices[term];
    View v;
    v.op = add(op);
    m_.views[value] = v;
    return true;
  }

  bool row(int n) {
    if (out(n) < 0) return false;
    int term = match_rows(g_, n, row_of_, m_.rows);
    if (term < 0) return false;
    row_of_[out(n)] = term;
    return true;
  }

  int dequantized(int quantized) {
    for (size_t i = 0; i < m_.ops.size(); ++i)
      if (m_.ops[i].kind == OpKind::kDequantize && m_.ops[i].inputs[0] == quantized) return static_cast<int>(i);
    Op op;
    op.kind = OpKind::kDequantize;
    op.inputs = {quantized};
    op.width = m_.ops[quantized].width;
    op.quantization = m_.ops[quantized].quantization;
    return add(op);
  }

  bool absorb(int n) {
    const std::string& op = node(n).op;
    if (row(n)) return true;
    if (op == "MatMul" || op == "Gemm") return product(n);
    if (op == "QuantizeLinear") return quantize(n);
    if (op == "DequantizeLinear") return dequantize(n);
    if (op == "Add") return sum(n);
    if (op == "Mul" || op == "Div") return scaled(n);
    if (op == "Reshape") return reshape(n);
    if (op == "Transpose") return transpose(n);
    if (op == "Softmax") return softmax(n);
    if (op == "IsNaN") return is_nan(n);
    if (op == "Where") return nan_to_zero(n);
    if (op == "LayerNormalization") return layer_norm(n);
    if (op == "ReduceMean") return layer_norm_of(layer_norm_from_mean(g_, n));
    if (op == "Erf") return activation_of(gelu_around_erf(g_, n), Activation::kGeluErf);
    if (op == "Sigmoid") return activation_of(silu_around_sigmoid(g_, n), Activation::kSilu);
    if (op == "Tanh" && activation_of(gelu_around_tanh(g_, n), Activation::kGeluTanh)) return true;
    if (op == "Gelu" || op == "Relu" || op == "Tanh" || op == "Swish") return activate(n);
    if (op == "Identity" || op == "Dropout") return pass(n);
    return false;
  }

  bool pass(int n) {
    View v = view(in(n, 0));
    if (!v.held()) return false;
    if (node(n).outputs.size() > 1 && node(n).outputs[1] >= 0 && !g_.values[node(n).outputs[1]].consumers.empty())
      return false;
    return show(n, v);
  }

  // ---- quantisation ------------------------------------------------------------------------------
  bool quantize(int n) {
    auto q = quantization(g_, node(n));
    int x = in(n, 0);
    if (!q) return false;
    View v = view(x);
    if (!v.held()) return false;   // from outside: see quantized_input
    if (v.layout == Layout::kScores || v.layout == Layout::kProbabilities) return round(n, v, *q);
    if (v.form == Form::kQuantized || !(v.factor > 0.f)) return false;
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

  // The same but for the rounding of a scale that was divided by a factor.
  static bool alike(const Quantization& a, const Quantization& b) {
    return a.zero_point == b.zero_point && a.is_signed == b.is_signed && std::fabs(a.scale - b.scale) <= 1e-6f * a.scale;
  }

  // Scores and probabilities stay in float, and are rounded where the graph quantises them.
  bool round(int n, View v, Quantization q) {
    bool scores = v.layout == Layout::kScores;
    if (scores && v.masks[0] >= 0) return fail("its scores are quantised after a mask was added");
    if (v.form == Form::kQuantized || !(v.factor > 0.f)) return false;
    if (scores) q.scale /= v.factor;
    Quantization& rounding = scores ? v.score_rounding : v.probability_rounding;
    if (rounding.scale != 0.f && !alike(rounding, q)) return fail("its scores or probabilities are quantised twice");
    rounding = q;
    v.form = Form::kQuantized;
    return show(n, v);
  }

  bool unround(int n, View v) {
    bool scores = v.layout == Layout::kScores;
    const Quantization& have = scores ? v.score_rounding : v.probability_rounding;
    auto q = quantization(g_, node(n));
    if (!q) return false;
    if (scores) q->scale /= v.factor;
    if (!alike(*q, have)) return false;
    v.form = Form::kFloat;
    return show(n, v);
  }

  View quantized_view(View v, const Quantization& q) {
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

  bool dequantize(int n) {
    View v = view(in(n, 0));
    if (!v.held()) v = quantized_import(n);
    if (!v.held() || v.form != Form::kQuantized) return false;
    if (v.layout == Layout::kScores || v.layout == Layout::kProbabilities) return unround(n, v);
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

  // A quantised tensor of tokens from outside.
  View quantized_import(int n) {
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
    if (v.held()) m_.views[x] = v;
    return v;
  }

  // ---- products ----------------------------------------------------------------------------------
  bool product(int n) {
    View a = view(in(n, 0)), b = view(in(n, 1));
    if (node(n).op == "MatMul" && a.held() && b.held()) {
      if (a.layout == Layout::kProbabilities) return context(n, a, b);
      return scores(n, a, b);
    }
    return linear(n);
  }

  // The quantised op that a product with an int8 matrix reads, or -1.
  int quantized_input(int value, int inputs) {
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

  bool linear(int n) {
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
    return show(n, add(op));
  }

  void chain_of_bias(int value, std::vector<int>& chain) const {
    if (!g_.constant(value) && g_.values[value].producer >= 0) chain.push_back(g_.values[value].producer);
  }

  // ---- sums, factors, activations -----------------------------------------------------------------
  bool sum(int n) {
    int a = in(n, 0), b = in(n, 1);
    gathered(a, 0);
    gathered(b, 0);
    if (!view(a).held()) std::swap(a, b);
    View v = view(a);
    if (!v.held()) return false;
    if (v.layout == Layout::kScores) return masked(n, v, b);
    if (!plain_float(a)) {
      if (!v.plain() || v.form != Form::kDequantized) return false;
      v = View{};
      v.op = dequantized(view(a).op);
    }
    int width = m_.ops[v.op].width;
    if (auto bias = vector(g_, b, static_cast<size_t>(width))) return add_bias(n, v.op, *bias, b);
    if (g_.constant(b)) return false;
    int other = tensor(b, width);
    if (other < 0) return false;
    Op op;
    op.kind = OpKind::kAdd;
    op.inputs = {v.op, other};
    op.width = width;
    return show(n, add(op));
  }

  bool masked(int n, View v, int mask) {
    if (v.masks[1] >= 0) return fail("more than two masks are added to the scores of one attention");
    if (mask < 0 || view(mask).held() || row_of_[mask] >= 0) return fail("what is added to its scores is computed in the engine");
    const Constant* c = g_.constant(mask);
    if (c && (c->type != Type::kFloat || !c->data)) return fail("what is added to its scores is no float constant");
    v.masks[v.masks[0] >= 0 ? 1 : 0] = mask;
    return show(n, v);
  }

  bool add_bias(int n, int op, const std::vector<float>& bias, int value) {
    const Op& producer = m_.ops[op];
    if (!g_.constant(value) && g_.values[value].producer >= 0) {
      if (barred_[g_.values[value].producer]) return false;
      m_.claimed[g_.values[value].producer] = 1;
    }
    if (producer.kind == OpKind::kLinear && only_consumer(other_input(n, value)) == n && m_.weights[producer.weights].bias.empty()) {
      m_.weights[producer.weights].bias = bias;
      return show(n, op);
    }
    Op shift;
    shift.kind = OpKind::kShift;
    shift.inputs = {op};
    shift.width = producer.width;
    shift.beta = bias;
    return show(n, add(shift));
  }

  bool scaled(int n) {
    int a = in(n, 0), b = in(n, 1);
    bool division = node(n).op == "Div";
    if (!division && !view(a).held()) std::swap(a, b);
    View v = view(a);
    if (!v.held() || v.form == Form::kQuantized) return false;
    if (v.layout != Layout::kTokens && v.layout != Layout::kProbabilities) {
      auto f = scalar(g_, b);
      if (!f || !std::isfinite(*f) || *f == 0 || std::fabs(*f) > kHugeMask) return false;
      if (v.masks[0] >= 0) return fail("its scores are scaled after a mask was added");
      v.factor *= division ? 1.f / *f : *f;
      return show(n, v);
    }
    if (division || !plain_float(a) || !plain_float(b) || m_.ops[v.op].width != m_.ops[view(b).op].width) return false;
    Op op;
    op.kind = OpKind::kMultiply;
    op.inputs = {v.op, view(b).op};
    op.width = m_.ops[v.op].width;
    return show(n, add(op));
  }

  bool activate_as(int n, int x, Activation activation) {
    if (!plain_float(x)) return false;
    Op op;
    op.kind = OpKind::kActivate;
    op.inputs = {view(x).op};
    op.width = m_.ops[view(x).op].width;
    op.activation = activation;
    return show(n, add(op));
  }

  bool activate(int n) {
    const std::string& op = node(n).op;
    if (op == "Relu") return activate_as(n, in(n, 0), Activation::kRelu);
    if (op == "Tanh") return activate_as(n, in(n, 0), Activation::kTanh);
    if (op == "Swish") return node(n).real("alpha", 1.f) == 1.f && activate_as(n, in(n, 0), Activation::kSilu);
    auto approximate = node(n).strings.find("approximate");
    bool tanh = approximate != node(n).strings.end() && approximate->second == "tanh";
    return activate_as(n, in(n, 0), tanh ? Activation::kGeluTanh : Activation::kGeluErf);
  }

  // The one node that reads `value`, -1 where there is none, or another, or a graph output.
  int only_consumer(int value) const {
    if (value < 0 || g_.values[value].is_output || g_.values[value].consumers.size() != 1) return -1;
    return g_.values[value].consumers[0];
  }
  int other_input(int n, int value) const { return in(n, 0) == value ? in(n, 1) : in(n, 0); }
  bool is(int n, const char* op) const { return n >= 0 && !barred_[n] && node(n).op == op; }
  bool near(int value, float x) const {
    auto s = scalar(g_, value);
    return s && std::fabs(*s - x) < 1e-4f * std::fabs(x);
  }

  bool covers(const Pattern& p) const {
    return std::none_of(p.nodes.begin(), p.nodes.end(), [&](int n) { return barred_[n] || (m_.claimed[n] != 0); });
  }

  bool activation_of(const std::optional<Pattern>& p, Activation activation) {
    if (!p || !covers(*p) || !plain_float(p->x)) return false;
    for (int n : p->nodes) m_.claimed[n] = 1;
    return activate_as(p->last, p->x, activation);
  }

  bool layer_norm_of(const std::optional<Pattern>& p) {
    if (!p || !covers(*p)) return false;
    Op op;
    op.kind = OpKind::kLayerNorm;
    op.width = static_cast<int>(p->gamma.size());
    op.gamma = p->gamma;
    op.beta = p->beta;
    op.epsilon = p->epsilon;
    int x = tensor(p->x, op.width);
    if (x < 0) return false;
    op.inputs = {x};
    for (int n : p->nodes) m_.claimed[n] = 1;
    return show(p->last, add(op));
  }

  bool layer_norm(int n) {
    int axis = static_cast<int>(node(n).integer("axis", -1));
    auto gamma = vector(g_, in(n, 1));
    if (!gamma) return fail("its scale is no constant vector");
    if (axis != -1 && axis != 2) return fail("it normalises over more than the last axis");
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
    int x = tensor(in(n, 0), op.width);
    if (x < 0) return fail("its input is not held as float tokens of that width");
    op.inputs = {x};
    for (size_t i : {1, 2}) claim_constant_chain(in(n, i));
    return show(n, add(op));
  }

  // A DequantizeLinear whose constant was read goes with its reader, where nothing else reads it.
  void claim_constant_chain(int value) {
    if (value < 0 || g_.constant(value)) return;
    int p = g_.values[value].producer;
    if (p >= 0 && !barred_[p] && only_consumer(value) >= 0) m_.claimed[p] = 1;
  }

  // ---- attention ---------------------------------------------------------------------------------
  // Shape of a tensor that is held, as far as it is known without a call.
  std::optional<std::vector<Dim>> shape_of(int value) const {
    View v = view(value);
    if (!v.held()) return std::nullopt;
    Dim batch{Dim::kBatch, 0}, length{Dim::kLength, 0};
    int width = m_.ops[v.op].width;
    Dim features = Dim::of(width);
    if (v.layout == Layout::kTokens) return std::vector<Dim>{batch, length, features};
    Dim heads = Dim::of(width / v.head_dim), size = Dim::of(v.head_dim);
    switch (v.layout) {
      case Layout::kSequenceHeads: return std::vector<Dim>{batch, length, heads, size};
      case Layout::kHeads: return std::vector<Dim>{batch, heads, length, size};
      case Layout::kHeadsLast: return std::vector<Dim>{batch, heads, size, length};
      case Layout::kFlatHeads: return std::vector<Dim>{Dim{}, length, size};
      case Layout::kFlatHeadsLast: return std::vector<Dim>{Dim{}, size, length};
      default: return std::vector<Dim>{batch, heads, length, length};
    }
  }

  // Whether a Reshape to `target` may make `wanted` of its input: each dimension is what is wanted,
  // or copies it from the same place (0), or is the one that is left open (-1).
  static bool reaches(const std::vector<Dim>& target, const std::vector<Dim>& wanted) {
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

  bool reshape(int n) {
    View v = view(in(n, 0));
    if (!v.held()) return false;
    if (out(n) < 0) return false;
    auto known = known_.find(g_.values[out(n)].name);
    if (known != known_.end()) {
      v.layout = known->second.layout;
      v.head_dim = known->second.head_dim;
      return m_.ops[v.op].width % std::max(1, v.head_dim) == 0 && show(n, v);
    }
    auto target = shape_elements(g_, in(n, 1), [this](int value) { return shape_of(value); });
    if (!target) return false;
    int width = m_.ops[v.op].width;
    auto becomes = [&](Layout layout, int head_dim) {
      View w = v;
      w.layout = layout;
      w.head_dim = head_dim;
      m_.views[out(n)] = w;
      if (reaches(*target, *shape_of(out(n)))) {
        m_.reshapes[g_.values[out(n)].name] = {layout, head_dim};
        return true;
      }
      m_.views[out(n)] = View{};
      return false;
    };
    switch (v.layout) {
      case Layout::kTokens: {
        if (target->size() == 3) return becomes(Layout::kTokens, 0);
        if (target->size() != 4) return false;
        const Dim& size = target->back();
        if (size.kind != Dim::kNumber || size.number < 1 || width % size.number != 0) return false;
        return becomes(Layout::kSequenceHeads, static_cast<int>(size.number));
      }
      case Layout::kSequenceHeads:
        return target->size() == 3 ? becomes(Layout::kTokens, 0) : becomes(Layout::kSequenceHeads, v.head_dim);
      case Layout::kHeads:
        return target->size() == 3 ? flat(*target, Layout::kFlatHeads) && becomes(Layout::kFlatHeads, v.head_dim)
                                   : becomes(Layout::kHeads, v.head_dim);
      case Layout::kFlatHeads:
        return becomes(Layout::kHeads, v.head_dim);
      case Layout::kFlatHeadsLast:
        return becomes(Layout::kHeadsLast, v.head_dim);
      default:
        return false;
    }
  }
  // Batch and heads join in front when that is the open dimension.
  static bool flat(const std::vector<Dim>& target, Layout) { return target[0].is(-1); }

  bool transpose(int n) {
    View v = view(in(n, 0));
    auto found = node(n).int_lists.find("perm");
    if (!v.held() || found == node(n).int_lists.end()) return false;
    const std::vector<int64_t>& perm = found->second;
    const std::vector<int64_t> swap_heads = {0, 2, 1, 3}, heads_last = {0, 2, 3, 1}, swap_last = {0, 1, 3, 2};
    const std::vector<int64_t> back = {0, 3, 1, 2}, swap_flat = {0, 2, 1};
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

  // The float op behind heads, dequantised where the graph quantises queries, keys or values.
  int float_heads(const View& v) { return v.form == Form::kDequantized ? dequantized(v.op) : v.op; }

  bool scores(int n, const View& q, const View& k) {
    if (q.layout != Layout::kHeads || k.layout != Layout::kHeadsLast || q.form == Form::kQuantized ||
        k.form == Form::kQuantized)
      return fail("it multiplies two computed tensors, and not queries by keys");
    if (q.head_dim != k.head_dim || m_.ops[q.op].width != m_.ops[k.op].width)
      return fail("queries and keys differ in heads or size");
    View v = q;
    v.op = float_heads(q);
    v.key = float_heads(k);
    v.form = Form::kFloat;
    v.layout = Layout::kScores;
    v.factor = q.factor * k.factor;
    return show(n, v);
  }

  // Where(IsNaN(p), 0, p): rows without any key.
  bool is_nan(int n) {
    View v = view(in(n, 0));
    if (!v.held() || v.layout != Layout::kProbabilities) return false;
    v.layout = Layout::kNotANumber;
    return show(n, v);
  }
  bool nan_to_zero(int n) {
    View flag = view(in(n, 0)), p = view(in(n, 2));
    auto zero = scalar(g_, in(n, 1));
    if (!flag.held() || flag.layout != Layout::kNotANumber || !p.held() || p.layout != Layout::kProbabilities) return false;
    if (flag.op != p.op || flag.key != p.key || !zero || *zero != 0.f) return false;
    p.nan_to_zero = true;
    return show(n, p);
  }

  bool softmax(int n) {
    View v = view(in(n, 0));
    int64_t axis = node(n).integer("axis", -1);
    if (!v.held() || v.layout != Layout::kScores) return fail("its input is no product of queries and keys");
    bool implied = node(n).ints.count("axis") == 0 && node(n).since < 13;   // was axis 1, flattened
    if ((axis != -1 && axis != 3) || implied) return fail("it is not over the last axis");
    v.layout = Layout::kProbabilities;
    return show(n, v);
  }

  bool context(int n, const View& p, const View& value) {
    if (value.layout != Layout::kHeads || value.form == Form::kQuantized || value.head_dim != p.head_dim ||
        m_.ops[value.op].width != m_.ops[p.op].width || value.factor != 1.f)
      return fail("it multiplies probabilities by something that is no values of the same heads");
    Op op;
    op.kind = OpKind::kAttention;
    op.inputs = {p.op, p.key, float_heads(value)};
    op.width = m_.ops[p.op].width;
    op.head_dim = p.head_dim;
    op.scale = p.factor;
    op.masks[0] = p.masks[0];
    op.masks[1] = p.masks[1];
    op.nan_to_zero = p.nan_to_zero;
    op.score_rounding = p.score_rounding;
    op.probability_rounding = p.probability_rounding;
    View v;
    v.op = add(op);
    v.layout = Layout::kHeads;
    v.head_dim = p.head_dim;
    return show(n, v);
  }

  // Shape, Gather, Concat and their like whose results only claimed nodes read: left outside they
  // would make the engine hand out hidden states for the sake of their shape.
  void claim_shape_arithmetic() {
    static const char* const kOps[] = {"Shape", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Cast", "Mul", "Div",
                                       // what a packed matrix is put among, and waits for
                                       "ConstantOfShape", "Expand", "Abs", "Add", "QuantizeLinear", "DequantizeLinear"};
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
  // Whether a claimed node reads `value` only as a shape.
  bool feeds_shape(int consumer, int value) const {
    if (arithmetic_[consumer] || unpacks_[consumer]) return true;
    return m_.claimed[consumer] && node(consumer).op == "Reshape" && in(consumer, 0) != value && view(out(consumer)).held();
  }

  const Graph& g_;
  const std::vector<char>& barred_;
  const Reshapes& known_;
  Densities& densities_;
  Match m_;
  std::vector<int> imports_;   // by value: the op that imports it
  std::vector<int> row_of_;    // by value: its term among the rows
  std::vector<char> arithmetic_;   // by node: claimed because it computes shapes for claimed nodes
  std::vector<char> unpacks_;      // by node: of the chain of a packed matrix
  std::string reason_;
};

}  // namespace

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
