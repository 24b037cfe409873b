#include "narrow.h"

#include <algorithm>
#include <map>
#include <optional>

namespace obert {
namespace {

// Whether every token of the result depends on the same token of the inputs; of attention, on that of the queries.
bool by_token(const Op& op) { return op.kind != OpKind::kImport && op.kind != OpKind::kRows && op.kind != OpKind::kPick; }

// Inputs of which a picked op reads the token alone.
size_t narrow_inputs(const Op& op) { return op.kind == OpKind::kAttention ? 1 : op.inputs.size(); }

std::vector<char> live_ops(const std::vector<Op>& ops, const std::vector<int>& exported) {
  std::vector<char> live(ops.size(), 0);
  for (int o : exported) live[o] = 1;
  for (size_t o = ops.size(); o-- > 0;)
    if (live[o])
      for (int input : ops[o].inputs) live[input] = 1;
  return live;
}

// The token of all picks, nothing where there are none or they differ.
std::optional<int64_t> common_token(const std::vector<Op>& ops, const std::vector<char>& live) {
  std::optional<int64_t> token;
  for (size_t o = 0; o < ops.size(); ++o) {
    if (!live[o] || ops[o].kind != OpKind::kPick) continue;
    if (token && *token != ops[o].token) return std::nullopt;
    token = ops[o].token;
  }
  return token;
}

// By op: whether nothing but picks reads it, directly or through others like it.
std::vector<char> read_by_picks(const std::vector<Op>& ops, const std::vector<int>& exported, const std::vector<char>& live) {
  std::vector<char> narrow(ops.size(), 0), wide(ops.size(), 0);
  for (int o : exported) wide[o] = 1;
  for (size_t o = ops.size(); o-- > 0;) {
    const Op& op = ops[o];
    if (!live[o]) continue;
    narrow[o] = !op.picked && !wide[o] && by_token(op);
    const bool picks = op.kind == OpKind::kPick || narrow[o];
    for (size_t i = 0; i < op.inputs.size(); ++i)
      if (!picks || i >= narrow_inputs(op)) wide[op.inputs[i]] = 1;
  }
  return narrow;
}

}  // namespace

Narrowed narrow(const std::vector<Op>& ops, const std::vector<int>& exported) {
  Narrowed n;
  const std::vector<char> live = live_ops(ops, exported);
  const std::optional<int64_t> token = common_token(ops, live);
  const std::vector<char> narrowed = token ? read_by_picks(ops, exported, live) : std::vector<char>(ops.size(), 0);
  std::map<int, int> picks;   // by op before
  const auto pick_of = [&](int o) {
    auto [found, fresh] = picks.try_emplace(o, static_cast<int>(n.ops.size()));
    if (fresh) {
      Op pick;
      pick.kind = OpKind::kPick;
      pick.inputs = {n.place[o]};
      pick.width = ops[o].width;
      pick.quantized = ops[o].quantized;
      pick.quantization = ops[o].quantization;
      pick.picked = true;
      pick.token = *token;
      n.ops.push_back(pick);
    }
    return found->second;
  };
  for (size_t o = 0; o < ops.size(); ++o) {
    Op op = ops[o];
    if (token && live[o] && op.kind == OpKind::kPick) {
      n.place.push_back(narrowed[op.inputs[0]] ? n.place[op.inputs[0]] : pick_of(op.inputs[0]));
      continue;
    }
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      const int input = op.inputs[i];
      const bool pick = narrowed[o] && i < narrow_inputs(op) && !narrowed[input];
      op.inputs[i] = pick ? pick_of(input) : n.place[input];
    }
    if (narrowed[o]) {
      op.picked = true;
      op.token = *token;
    }
    n.place.push_back(static_cast<int>(n.ops.size()));
    n.ops.push_back(std::move(op));
  }
  return n;
}

}  // namespace obert
