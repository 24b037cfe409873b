#include "lower.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "narrow.h"
#include "position_table.h"
#include "prepare.h"
#include "share_memory.h"
#include "weights.h"

namespace obert {
namespace {

// One op with everything that was fused into it. Results of fused ops are results of the head.
struct Fused {
  int op = -1;                     // the op it began with
  int last = -1;                   // the op whose float result it has
  Rounding rounding, out_rounding;
  int shift = -1;                  // op kShift that comes before the activation
  Activation activation = Activation::kNone;
  int residual = -1, factor = -1;  // ops
  int quantize = -1;               // op whose result is a second output
  bool keep_float = true;
  int group = -1;                  // products of one input: the first of them
};

class Lowering {
 public:
  Lowering(const Graph& g, const Match& m, const Signature& s, const Kernels* k) : g_(g), m_(m), s_(s) {
    p_.kernels = k;
    ops_ = m.ops;
  }

  Program run() {
    add_exports();
    narrow_ops();
    count_uses();
    sum_rows();
    fuse();
    order();
    merge_products();
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

  void narrow_ops() {
    std::vector<int> exported;
    for (const Export& e : exports_) exported.push_back(e.op);
    Narrowed n = narrow(ops_, exported);
    ops_ = std::move(n.ops);
    for (Export& e : exports_) e.op = n.place[e.op];
  }

  void count_uses() {
    readers_.assign(ops_.size(), {});
    exported_.assign(ops_.size(), 0);
    std::vector<char> live(ops_.size(), 0);
    for (const Export& e : exports_) live[e.op] = exported_[e.op] = 1;
    for (int o = static_cast<int>(ops_.size()) - 1; o >= 0; --o) {
      if (!live[o]) continue;
      for (int input : ops_[o].inputs) {
        live[input] = 1;
        readers_[input].push_back(o);
      }
    }
    live_ = live;
  }

  int only_reader(int op) const { return !exported_[op] && readers_[op].size() == 1 ? readers_[op][0] : -1; }

  // Sums of gathered rows are gathered as one.
  void sum_rows() {
    taken_.assign(ops_.size(), 0);
    rows_of_.assign(ops_.size(), {});
    for (int o = 0; o < static_cast<int>(ops_.size()); ++o) {
      if (ops_[o].kind == OpKind::kRows) rows_of_[o] = {o};
      if (!live_[o] || ops_[o].kind != OpKind::kAdd) continue;
      int a = ops_[o].inputs[0], b = ops_[o].inputs[1];
      if (rows_of_[b].size() > 1) std::swap(a, b);
      // In the order of the graph, whose sums round.
      if (rows_of_[a].empty() || rows_of_[b].size() != 1 || only_reader(a) != o || only_reader(b) != o) continue;
      rows_of_[o] = rows_of_[a];
      rows_of_[o].push_back(b);
      taken_[a] = taken_[b] = 1;
    }
  }

  void fuse() {
    for (int o = 0; o < static_cast<int>(ops_.size()); ++o) {
      if (!live_[o] || taken_[o]) continue;
      Fused f;
      f.op = f.last = o;
      const Op& op = ops_[o];
      if (op.kind == OpKind::kLinear || op.kind == OpKind::kActivate || op.kind == OpKind::kScale) {
        if (op.kind == OpKind::kActivate) f.activation = op.activation;
        follow(f);
      } else if (op.kind == OpKind::kAdd && rows_of_[o].empty()) {
        int next = only_reader(o);
        if (next >= 0 && ops_[next].kind == OpKind::kLayerNorm) {
          taken_[next] = 1;
          f.op = f.last = next;
          f.residual = o;    // both inputs of this op
        }
      }
      bool moves = op.kind == OpKind::kImport || !rows_of_[o].empty() || op.kind == OpKind::kDequantize || op.kind == OpKind::kPick ||
                   op.kind == OpKind::kRotary || op.kind == OpKind::kWeighTokens;
      if (!moves) take_quantize(f);
      taken_[o] = 1;
      fused_.push_back(f);
    }
  }

  // Activation, then one sum or product with something else, while nobody else reads what is between.
  void follow(Fused& f) {
    for (;;) {
      int next = only_reader(f.last);
      if (next < 0 || taken_[next]) return;
      const Op& op = ops_[next];
      bool open = f.residual < 0 && f.factor < 0 && f.out_rounding.scale == 0.f;
      if (op.kind == OpKind::kQuantize) {
        // Quantised and at once dequantised: a float that was rounded.
        int back = only_reader(next);
        if (back < 0 || ops_[back].kind != OpKind::kDequantize) return;
        bool first = f.rounding.scale == 0.f && f.shift < 0 && f.activation == Activation::kNone && open;
        if (!first && f.out_rounding.scale != 0.f) return;
        (first ? f.rounding : f.out_rounding) = {op.quantization.scale, op.quantization.zero_point};
        taken_[next] = 1;
        next = back;
      } else if (op.kind == OpKind::kShift && open && f.shift < 0 && f.activation == Activation::kNone) {
        f.shift = next;
      } else if (op.kind == OpKind::kActivate && open && f.activation == Activation::kNone) {
        f.activation = op.activation;
      } else if ((op.kind == OpKind::kAdd || op.kind == OpKind::kMultiply) && open && op.inputs[0] != op.inputs[1]) {
        int other = op.inputs[0] == f.last ? op.inputs[1] : op.inputs[0];
        (op.kind == OpKind::kAdd ? f.residual : f.factor) = other;
      } else {
        return;
      }
      taken_[next] = 1;
      f.last = next;
    }
  }

  void take_quantize(Fused& f) {
    // Heads are written quantised by whole dwords: others are quantised in a step of their own.
    const bool by_head = ops_[f.op].kind == OpKind::kAttention || ops_[f.op].kind == OpKind::kLayerNorm;
    if (by_head && ops_[f.op].head_dim % kBlock != 0) return;
    const auto& readers = readers_[f.last];
    int found = -1;
    for (int r : readers) {
      if (ops_[r].kind != OpKind::kQuantize || taken_[r]) continue;
      found = r;
      break;
    }
    if (found < 0) return;
    taken_[found] = 1;
    f.quantize = found;
    f.keep_float = exported_[f.last] || readers.size() > 1;
  }

  // A fused op runs when all it reads is there: in the order of the last op it took up. Ops are
  // numbered in topological order but for sums whose other side comes later in the graph.
  void order() {
    std::vector<int> made_by(ops_.size(), -1);
    for (size_t i = 0; i < fused_.size(); ++i) {
      made_by[fused_[i].last] = static_cast<int>(i);
      if (fused_[i].quantize >= 0) made_by[fused_[i].quantize] = static_cast<int>(i);
    }
    std::vector<Fused> sorted;
    std::vector<char> state(fused_.size(), 0);
    // Iterative depth-first search: hostile graphs may be deep.
    for (size_t start = 0; start < fused_.size(); ++start) {
      std::vector<int> stack = {static_cast<int>(start)};
      while (!stack.empty()) {
        int i = stack.back();
        if (state[i] == 2) {
          stack.pop_back();
          continue;
        }
        bool ready = true;
        for (int input : reads(fused_[i])) {
          int from = made_by[input];
          if (from < 0 || from == i) throw std::runtime_error("a tensor of the part is not computed");
          if (state[from] != 2) {
            if (state[from] == 1) throw std::runtime_error("the part has a cycle");
            stack.push_back(from);
            ready = false;
          }
        }
        state[i] = ready ? 2 : 1;
        if (ready) {
          sorted.push_back(fused_[i]);
          stack.pop_back();
        }
      }
    }
    fused_ = std::move(sorted);
  }

  std::vector<int> reads(const Fused& f) const {
    std::vector<int> r;
    if (!rows_of_[f.op].empty()) return r;
    if (ops_[f.op].kind == OpKind::kLayerNorm && f.residual >= 0) return ops_[f.residual].inputs;
    r = ops_[f.op].inputs;
    if (f.residual >= 0) r.push_back(f.residual);
    if (f.factor >= 0) r.push_back(f.factor);
    return r;
  }

  bool mergeable(const Fused& f) const {
    const Op& op = ops_[f.op];
    return op.kind == OpKind::kLinear && f.last == f.op && f.quantize < 0 && op.width % kBlock == 0;
  }

  // Queries, keys and values: one walk over the activations instead of three.
  void merge_products() {
    for (size_t i = 0; i < fused_.size(); ++i) {
      if (!mergeable(fused_[i]) || fused_[i].group >= 0) continue;
      for (size_t j = i + 1; j < fused_.size(); ++j) {
        if (!mergeable(fused_[j]) || fused_[j].group >= 0) continue;
        if (ops_[fused_[j].op].inputs[0] != ops_[fused_[i].op].inputs[0]) continue;
        fused_[j].group = static_cast<int>(i);
      }
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
    if (f.quantize >= 0) quantized_output(s, f.quantize);
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

  void attention(Step& s, const Op& op) {
    s.kind = StepKind::kAttention;
    s.x = place_[op.inputs[0]];
    s.key = place_[op.inputs[1]];
    s.value = place_[op.inputs[2]];
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
    std::vector<const Op*> members;
    std::vector<int> results;
    int width = 0;
    for (size_t j = index; j < fused_.size(); ++j) {
      if (j != index && fused_[j].group != static_cast<int>(index)) continue;
      members.push_back(&ops_[fused_[j].op]);
      results.push_back(fused_[j].last);
      width += ops_[fused_[j].last].width;
    }
    std::vector<Outputs> outputs;
    for (const Op* member : members) outputs.push_back({&m_.weights[member->weights], member->begin, member->width});
    const Op& input = ops_[members[0]->inputs[0]];
    s.product = static_cast<int>(p_.products.size());
    p_.products.push_back(prepare(outputs, input.quantized ? &input.quantization : nullptr, *p_.kernels));
    if (!fused_[index].keep_float) return;
    int buffer = new_buffer(width, false, ops_[fused_[index].op].picked);
    int column = 0;
    for (int r : results) {
      place_[r].buffer = buffer;
      place_[r].column = column;
      place_[r].width = ops_[r].width;
      column += ops_[r].width;
    }
    s.out.buffer = buffer;
    s.out.width = width;
  }

  const Graph& g_;
  const Match& m_;
  const Signature& s_;
  Program p_;
  std::vector<Op> ops_;
  std::vector<Export> exports_;
  std::vector<std::vector<int>> readers_;
  std::vector<char> exported_, live_, taken_;
  std::vector<std::vector<int>> rows_of_;   // by op: the kRows that it is a sum of
  std::vector<Fused> fused_;
  std::vector<Slice> place_;
};

}  // namespace

Program lower(const Graph& graph, const Match& match, const Signature& signature, const Kernels* kernels) {
  return Lowering(graph, match, signature, kernels).run();
}

}  // namespace obert
