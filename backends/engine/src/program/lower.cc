#include "lower.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "fuse.h"
#include "narrow.h"
#include "position_table.h"
#include "prepare.h"
#include "share_memory.h"
#include "weights.h"

namespace obert {
namespace {

class Lowering {
 public:
  Lowering(const Graph& g, const Match& m, const Signature& s, const Kernels* k) : g_(g), m_(m), s_(s) {
    p_.kernels = k;
    ops_ = m.ops;
  }

  Program run() {
    add_exports();
    narrow_ops();
    attend_to_codes();
    Fusion fusion = fuse(ops_, exported_ops());
    fused_ = std::move(fusion.steps);
    rows_of_ = std::move(fusion.rows_of);
    emit();
    share_memory(p_);
    return std::move(p_);
  }

 private:
  struct Export {
    int op;
    int output;
  };

  void add_exports() {
    for (size_t i = 0; i < s_.outputs.size(); ++i) {
      View v = m_.views[s_.outputs[i]];
      if (!v.plain()) throw std::runtime_error("an output of the part is not held");
      int op = v.op;
      if (v.form == Form::kDequantized) {
        op = -1;
        for (size_t o = 0; o < ops_.size(); ++o)
          if (ops_[o].kind == OpKind::kDequantize && ops_[o].inputs[0] == v.op) op = static_cast<int>(o);
        if (op < 0) {
          Op d;
          d.kind = OpKind::kDequantize;
          d.inputs = {v.op};
          d.width = ops_[v.op].width;
          d.quantization = ops_[v.op].quantization;
          d.picked = ops_[v.op].picked;
          ops_.push_back(d);
          op = static_cast<int>(ops_.size()) - 1;
        }
      }
      exports_.push_back({op, static_cast<int>(i)});
    }
  }

  std::vector<int> exported_ops() const {
    std::vector<int> exported;
    for (const Export& e : exports_) exported.push_back(e.op);
    return exported;
  }

  void narrow_ops() {
    Narrowed n = narrow(ops_, exported_ops());
    ops_ = std::move(n.ops);
    for (Export& e : exports_) e.op = n.place[e.op];
  }

  // Attention reads queries, keys and values that were quantised as codes, whoever else reads what they stand for.
  void attend_to_codes() {
    const auto of_codes = [&](int o) { return ops_[o].kind == OpKind::kDequantize; };
    for (Op& op : ops_) {
      if (op.kind != OpKind::kAttention || op.head_dim % kBlock != 0 || op.by_query.used() || op.by_key.used()) continue;
      if (std::all_of(op.inputs.begin(), op.inputs.end(), of_codes))
        for (int& input : op.inputs) input = ops_[input].inputs[0];
    }
  }

  int new_buffer(int width, bool quantized, bool picked) {
    Buffer b;
    b.width = width;
    b.quantized = quantized;
    b.picked = picked;
    b.bytes = quantized ? panel_bytes(static_cast<size_t>(width)) : panel_floats(static_cast<size_t>(width)) * sizeof(float);
    p_.buffers.push_back(b);
    return static_cast<int>(p_.buffers.size()) - 1;
  }

  Slice fresh(int op) {
    Slice s;
    s.width = ops_[op].width;
    s.buffer = new_buffer(s.width, ops_[op].quantized, ops_[op].picked);
    place_[op] = s;
    return s;
  }

  int input_index(int value) const {
    auto found = std::find(s_.inputs.begin(), s_.inputs.end(), value);
    if (found == s_.inputs.end()) throw std::runtime_error("value '" + g_.values[value].name + "', which the part reads, is not among its inputs");
    return static_cast<int>(found - s_.inputs.begin());
  }

  // See Step::tensor.
  int constant_or_input(int value) {
    const Constant* c = g_.constant(value);
    return c ? constant(c->shape, std::vector<float>(c->as<float>(), c->as<float>() + c->count)) : input_index(value);
  }

  int constant(const std::vector<int64_t>& shape, std::vector<float> data) {
    p_.constants.push_back({shape, std::move(data)});
    return kConstants + static_cast<int>(p_.constants.size()) - 1;
  }

  AddedMask mask(const ScoreMask& m) {
    AddedMask to;
    const Constant* c = g_.constant(m.value);
    if (!m.used()) return to;
    to.tensor = c && c->type == Type::kBool ? constant(c->shape, added(c->as<uint8_t>(), c->count, m.if_true, m.if_false))
                                            : constant_or_input(m.value);
    to.if_true = m.if_true;
    to.if_false = m.if_false;
    return to;
  }

  PositionTerm positions(const Relative& r, const Op& op) {
    PositionTerm term;
    if (!r.used()) return term;
    term.table = static_cast<int>(p_.tables.size());
    p_.tables.push_back(position_table(*g_.constant(r.table), r, op.width / op.head_dim, op.head_dim));
    term.rounding = {r.rounding.scale, r.rounding.zero_point};
    term.factor = r.factor;
    term.copies = r.copies;
    term.spread = r.copies == Relative::kSpread;
    const Constant* c = g_.constant(r.index);
    if (!c) {
      term.index = input_index(r.index);
      return term;
    }
    // The first of copies for every head.
    const std::vector<int64_t> last(c->shape.end() - 2, c->shape.end());
    ConstantIndex index{last, std::vector<int64_t>(static_cast<size_t>(last[0] * last[1]))};
    for (size_t i = 0; i < index.data.size(); ++i) index.data[i] = c->type == Type::kInt32 ? c->as<int32_t>()[i] : c->as<int64_t>()[i];
    p_.indices.push_back(std::move(index));
    term.index = kConstants + static_cast<int>(p_.indices.size()) - 1;
    return term;
  }

  void emit() {
    place_.resize(ops_.size());
    for (size_t i = 0; i < fused_.size(); ++i) {
      if (fused_[i].group < 0) step_of(i);
    }
    // What is of one token of each sequence comes last: see tail.h.
    std::stable_partition(exports_.begin(), exports_.end(), [&](const Export& e) { return !ops_[e.op].picked; });
    for (const Export& e : exports_) {
      Step s;
      s.kind = StepKind::kExport;
      s.x = place_[e.op];
      s.tensor = e.output;
      s.flip_sign = ops_[e.op].quantized && ops_[e.op].quantization.is_signed;
      s.picked = ops_[e.op].picked;
      p_.steps.push_back(s);
    }
    p_.outputs.assign(s_.outputs.size(), {});
    for (const Export& e : exports_) {
      const bool joined = m_.views[s_.outputs[e.output]].layout == Layout::kMatrix;
      p_.outputs[e.output] = {ops_[e.op].width, ops_[e.op].picked, joined};
    }
  }

  void step_of(size_t index) {
    const Fused& f = fused_[index];
    const Op& op = ops_[f.op];
    Step s;
    s.activation = f.activation;
    s.rounding = f.rounding;
    s.shift_rounding = f.shift_rounding;
    s.out_rounding = f.out_rounding;
    s.picked = op.picked;
    s.token = op.token;
    if (f.shift >= 0) s.beta = ops_[f.shift].beta;
    if (!rows_of_[f.op].empty()) return gather(s, f.op);
    switch (op.kind) {
      case OpKind::kImport:
        s.kind = StepKind::kImport;
        s.by_position = op.by_position;
        s.tensor = constant_or_input(op.value);
        s.flip_sign = op.quantized && op.quantization.is_signed;
        s.zero_point = op.quantization.zero_point;
        (op.quantized ? s.quantized : s.out) = fresh(f.op);
        p_.steps.push_back(s);
        return;
      case OpKind::kRotary:
        s.kind = StepKind::kRotary;
        s.x = place_[op.inputs[0]];
        s.cosine = place_[op.inputs[1]];
        s.sine = place_[op.inputs[2]];
        s.head_dim = op.head_dim;
        s.out = fresh(f.op);
        p_.steps.push_back(s);
        return;
      case OpKind::kWeighTokens:
        s.kind = StepKind::kWeighTokens;
        s.x = place_[op.inputs[0]];
        s.factor = place_[op.inputs[1]];
        s.out = fresh(f.op);
        p_.steps.push_back(s);
        return;
      case OpKind::kPick:
        s.kind = StepKind::kPick;
        s.x = place_[op.inputs[0]];
        (op.quantized ? s.quantized : s.out) = fresh(f.op);
        p_.sequence_rank = 3;
        p_.steps.push_back(s);
        return;
      case OpKind::kDequantize:
        s.kind = StepKind::kDequantize;
        s.x = place_[op.inputs[0]];
        s.inverse_scale = op.quantization.scale;
        s.zero_point = op.quantization.zero_point;
        s.out = fresh(f.op);
        p_.steps.push_back(s);
        return;
      case OpKind::kLinear:
        s.kind = StepKind::kProduct;
        s.x = place_[op.inputs[0]];
        break;
      case OpKind::kLayerNorm:
        s.kind = StepKind::kLayerNorm;
        s.gamma = op.gamma;
        s.beta = op.beta;
        s.epsilon = op.epsilon;
        s.centred = op.centred;
        s.head_dim = op.head_dim;
        s.x = place_[f.residual >= 0 ? ops_[f.residual].inputs[0] : op.inputs[0]];
        if (f.residual >= 0) s.residual = place_[ops_[f.residual].inputs[1]];
        break;
      case OpKind::kAttention:
        attention(s, op);
        break;
      default:
        s.kind = StepKind::kPointwise;
        s.x = place_[op.inputs[0]];
        if (op.kind == OpKind::kScale) s.gamma = op.gamma;
        if (op.kind == OpKind::kShift) s.beta = op.beta;
        if (op.kind == OpKind::kAdd) s.residual = place_[op.inputs[1]];
        if (op.kind == OpKind::kMultiply) s.factor = place_[op.inputs[1]];
        break;
    }
    if (op.kind != OpKind::kLayerNorm) {
      if (f.residual >= 0) s.residual = place_[f.residual];
      if (f.factor >= 0) s.factor = place_[f.factor];
    }
    if (op.kind == OpKind::kQuantize) {
      quantized_output(s, f.op);
    } else if (s.kind == StepKind::kProduct) {
      product(s, index);
    } else if (f.keep_float) {
      s.out = fresh(f.last);
    }
    if (f.quantize >= 0 && !s.quantized.used()) quantized_output(s, f.quantize);
    if (f.rounded >= 0) {
      s.out = fresh(f.rounded);
      s.out_rounding.scale = ops_[f.quantize].quantization.scale;
    }
    p_.steps.push_back(s);
  }

  void gather(Step& s, int sum) {
    s.kind = StepKind::kRows;
    for (int o : rows_of_[sum]) {
      s.gathered.push_back({input_index(ops_[o].value), static_cast<int>(p_.rows.size())});
      p_.rows.emplace_back(m_.rows, ops_[o].row);
    }
    s.out = fresh(sum);
    p_.steps.push_back(s);
  }

  void quantized_output(Step& s, int op) {
    s.quantized = fresh(op);
    s.inverse_scale = 1.f / ops_[op].quantization.scale;
    s.zero_point = ops_[op].quantization.zero_point;
  }

  Rounding rounding_of(int op) const {
    if (!ops_[op].quantized) return {};
    return {ops_[op].quantization.scale, ops_[op].quantization.zero_point};
  }

  void attention(Step& s, const Op& op) {
    s.kind = StepKind::kAttention;
    s.x = place_[op.inputs[0]];
    s.key = place_[op.inputs[1]];
    s.value = place_[op.inputs[2]];
    s.of_x = rounding_of(op.inputs[0]), s.of_key = rounding_of(op.inputs[1]), s.of_value = rounding_of(op.inputs[2]);
    s.head_dim = op.head_dim;
    s.scale = op.scale;
    for (int i : {0, 1}) s.masks[i] = mask(op.masks[i]);
    s.by_query = positions(op.by_query, op);
    s.by_key = positions(op.by_key, op);
    s.nan_to_zero = op.nan_to_zero;
    s.scores = {op.score_rounding.scale * op.scale, op.score_rounding.zero_point};
    s.probabilities = {op.probability_rounding.scale, op.probability_rounding.zero_point};
    p_.sequence_rank = 3;
  }

  void product(Step& s, size_t index) {
    std::vector<const Fused*> members;
    for (size_t j = index; j < fused_.size(); ++j)
      if (j == index || fused_[j].group == static_cast<int>(index)) members.push_back(&fused_[j]);
    std::vector<Outputs> outputs;
    for (const Fused* f : members) outputs.push_back({&m_.weights[ops_[f->op].weights], ops_[f->op].begin, ops_[f->op].width});
    const Op& input = ops_[ops_[members[0]->op].inputs[0]];
    s.product = static_cast<int>(p_.products.size());
    p_.products.push_back(prepare(outputs, input.quantized ? &input.quantization : nullptr, *p_.kernels));
    const Fused& first = *members[0];
    const bool in_codes = members.size() > 1 && first.quantize >= 0;
    if (!in_codes && !first.keep_float) return;
    Slice& to = in_codes ? s.quantized : s.out;
    for (const Fused* f : members) to.width += ops_[f->op].width;
    to.buffer = new_buffer(to.width, in_codes, ops_[first.op].picked);
    int column = 0;
    for (const Fused* f : members) {
      const int result = in_codes ? f->quantize : f->last, width = ops_[result].width;
      place_[result] = {to.buffer, column, width};
      if (in_codes) fold(ops_[result].quantization, p_.products.back(), column, width);
      column += width;
    }
  }

  // Makes rows of a product come out as codes, not yet rounded.
  static void fold(const Quantization& q, Product& product, int first, int count) {
    for (int row = first; row < first + count; ++row) {
      product.scale[row] /= q.scale;
      product.bias[row] = product.bias[row] / q.scale + static_cast<float>(q.zero_point);
    }
  }

  const Graph& g_;
  const Match& m_;
  const Signature& s_;
  Program p_;
  std::vector<Op> ops_;
  std::vector<Export> exports_;
  std::vector<std::vector<int>> rows_of_;   // by op: the kRows that it is a sum of
  std::vector<Fused> fused_;
  std::vector<Slice> place_;
};

}  // namespace

Program lower(const Graph& graph, const Match& match, const Signature& signature, const Kernels* kernels) {
  return Lowering(graph, match, signature, kernels).run();
}

}  // namespace obert
