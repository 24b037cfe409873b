#include "fuse.h"

#include <stdexcept>
#include <utility>

namespace obert {
namespace {

class Fuser {
 public:
  explicit Fuser(const std::vector<Op>& ops) : ops_(ops) {}

  Fusion run(const std::vector<int>& exported) {
    count_uses(exported);
    sum_rows();
    fuse();
    order();
    merge_products();
    return {std::move(fused_), std::move(rows_of_)};
  }

 private:
  void count_uses(const std::vector<int>& exported) {
    readers_.assign(ops_.size(), {});
    exported_.assign(ops_.size(), 0);
    std::vector<char> live(ops_.size(), 0);
    for (int o : exported) live[o] = exported_[o] = 1;
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
      } else if (op.kind == OpKind::kActivate && f.activation == Activation::kNone && make_room(f)) {
        f.activation = op.activation;
      } else if ((op.kind == OpKind::kAdd || op.kind == OpKind::kMultiply) && op.inputs[0] != op.inputs[1] && make_room(f)) {
        int other = op.inputs[0] == f.last ? op.inputs[1] : op.inputs[0];
        (op.kind == OpKind::kAdd ? f.residual : f.factor) = other;
      } else {
        return;
      }
      taken_[next] = 1;
      f.last = next;
    }
  }

  // Lets an activation, a sum or a product follow, if one can: what was rounded last becomes what is rounded before it.
  static bool make_room(Fused& f) {
    if (f.residual >= 0 || f.factor >= 0) return false;
    if (f.out_rounding.scale == 0.f) return true;
    if (f.activation != Activation::kNone || f.shift_rounding.scale != 0.f) return false;
    f.shift_rounding = f.out_rounding;
    f.out_rounding = {};
    return true;
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
    if (f.keep_float || ops_[f.op].kind != OpKind::kLayerNorm) return;
    for (int r : readers_[found]) {
      if (ops_[r].kind != OpKind::kDequantize || taken_[r]) continue;
      taken_[r] = 1;
      f.rounded = r;
      return;
    }
  }

  // A fused op runs when all it reads is there: in the order of the last op it took up. Ops are
  // numbered in topological order but for sums whose other side comes later in the graph.
  void order() {
    std::vector<int> made_by(ops_.size(), -1);
    for (size_t i = 0; i < fused_.size(); ++i) {
      made_by[fused_[i].last] = static_cast<int>(i);
      if (fused_[i].quantize >= 0) made_by[fused_[i].quantize] = static_cast<int>(i);
      if (fused_[i].rounded >= 0) made_by[fused_[i].rounded] = static_cast<int>(i);
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
    // What makes codes of its sums is folded into the scale and the bias of each row: sums of whole numbers have them.
    const bool in_codes = f.quantize >= 0 && !f.keep_float && ops_[op.inputs[0]].quantized;
    return op.kind == OpKind::kLinear && f.last == f.op && (f.quantize < 0 || in_codes) && op.width % kBlock == 0;
  }

  // Queries, keys and values: one walk over the activations instead of three.
  void merge_products() {
    for (size_t i = 0; i < fused_.size(); ++i) {
      if (!mergeable(fused_[i]) || fused_[i].group >= 0) continue;
      for (size_t j = i + 1; j < fused_.size(); ++j) {
        if (!mergeable(fused_[j]) || fused_[j].group >= 0) continue;
        if (ops_[fused_[j].op].inputs[0] != ops_[fused_[i].op].inputs[0]) continue;
        if ((fused_[j].quantize < 0) != (fused_[i].quantize < 0)) continue;
        fused_[j].group = static_cast<int>(i);
      }
    }
  }

  const std::vector<Op>& ops_;
  std::vector<std::vector<int>> readers_;
  std::vector<char> exported_, live_, taken_;
  std::vector<std::vector<int>> rows_of_;
  std::vector<Fused> fused_;
};

}  // namespace

Fusion fuse(const std::vector<Op>& ops, const std::vector<int>& exported) { return Fuser(ops).run(exported); }

}  // namespace obert
