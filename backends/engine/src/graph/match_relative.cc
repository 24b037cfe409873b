// Relative positions in scores (He et al. 2021, DeBERTa, section 3.1): heads times a table of positions, of which an index
// picks one for each query and key, added to the scores.
#include "matcher_state.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "constants.h"

namespace obert {
namespace {

constexpr int64_t kMostPositions = 1 << 16;

// Whether an axis is the last of scores.
bool is_last(int64_t axis, bool flat) { return axis == -1 || axis == (flat ? 2 : 3); }

bool swaps_last(const std::vector<int64_t>& perm) {
  std::vector<int64_t> wanted(perm.size());
  if (perm.size() < 2) return false;
  std::iota(wanted.begin(), wanted.end(), int64_t{0});
  std::swap(wanted[perm.size() - 2], wanted[perm.size() - 1]);
  return perm == wanted;
}

}  // namespace

bool Matcher::repeats_batch(int n, size_t rank) {
  const std::string& name = g_.values[out(n)].name;
  if (known_.count(name) == 0) {
    const auto repeats = shape_elements(g_, in(n, 1), [this](int value) { return shape_of(value); });
    if (!repeats || repeats->size() != rank) return false;
    for (size_t i = 1; i < rank; ++i)
      if (!(*repeats)[i].is(1)) return false;
  }
  m_.reshapes[name] = {};
  return true;
}

Relative Matcher::table_of_positions(const View& x, int value, std::vector<int>& chain) {
  Relative found;
  bool turned = false;   // [.., head_dim, positions], as a product reads it
  constexpr size_t kDeepest = 24;
  while (chain.size() < kDeepest) {
    const Node* p = g_.producer(value);
    if (!p || p->inputs.empty() || barred_[g_.values[value].producer]) break;
    const int n = g_.values[value].producer;
    if (out(n) != value) break;
    if (p->op == "Transpose") {
      const auto perm = p->int_lists.find("perm");
      if (perm == p->int_lists.end() || !swaps_last(perm->second)) break;
      turned = !turned;
    } else if (p->op == "DequantizeLinear") {
      const auto q = quantization(g_, *p);
      const Node* quantizer = g_.producer(p->inputs[0]);
      const auto same = quantizer && quantizer->op == "QuantizeLinear" ? quantization(g_, *quantizer) : std::nullopt;
      if (!q || !same || !same->same(*q) || same->is_signed != q->is_signed || barred_[g_.values[p->inputs[0]].producer]) break;
      found.table_roundings.insert(found.table_roundings.begin(), *q);
      chain.push_back(n);
      chain.push_back(g_.values[p->inputs[0]].producer);
      value = quantizer->inputs.empty() ? -1 : quantizer->inputs[0];
      continue;
    } else if (p->op != "Tile" || !repeats_batch(n, x.flat ? 3 : 4)) {
      break;
    }
    chain.push_back(n);
    value = in(n, 0);
  }
  const Constant* c = g_.constant(value);
  if (!c || c->type != Type::kFloat || !c->data || !whole(*c)) return found;
  std::vector<int64_t> shape = c->shape;
  if (shape.size() == 4 && shape[0] == 1 && !x.flat) shape.erase(shape.begin());
  if (shape.size() != 3 || shape[0] != m_.ops[x.op].width / x.head_dim) return found;
  found.positions_last = !turned;
  const int64_t positions = found.positions_last ? shape[2] : shape[1], size = found.positions_last ? shape[1] : shape[2];
  if (size == x.head_dim && positions > 0 && positions <= kMostPositions) found.table = value;
  return found;
}

bool Matcher::positions(int n, View x) {
  if (x.group != 1) return fail("relative positions are of heads that several share");
  x.flat = x.layout == Layout::kFlatHeads;
  std::vector<int> chain;
  const Relative term = table_of_positions(x, in(n, 1), chain);
  if (term.table < 0) return fail("it multiplies queries or keys by something that is no constant table of positions");
  for (int c : chain) m_.claimed[c] = 1;
  x.op = float_heads(x);
  x.form = Form::kFloat;
  x.layout = Layout::kPositions;
  x.by_query = term;
  return show(n, x);
}

int Matcher::before_spread(int value, const std::vector<Dim>& shape, int64_t* copies) {
  if (copies) *copies = -1;
  const Node* p = g_.producer(value);
  if (!p || p->op != "Expand" || p->inputs.size() < 2 || barred_[g_.values[value].producer]) return value;
  const std::string& name = g_.values[value].name;
  Reshaped spread;
  const auto known = known_.find(name);
  if (known != known_.end()) {
    spread = known->second;
  } else {
    const auto target = shape_elements(g_, p->inputs[1], [this](int x) { return shape_of(x); });
    if (!target || target->size() != shape.size()) return value;
    spread.copies = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      const Dim& have = (*target)[i];
      if (i + 2 < shape.size()) spread.copies *= have.kind == Dim::kNumber && have.number > 0 && have.number < kMostPositions ? have.number : 0;
      if (!have.leaves(shape[i])) return value;
    }
  }
  m_.reshapes[name] = spread;
  m_.claimed[g_.values[value].producer] = 1;
  if (copies) *copies = spread.copies;
  return p->inputs[0];
}

bool Matcher::spread_outside(int value) const {
  const auto known = known_.find(g_.values[value].name);
  if (known != known_.end()) return known->second.spread_outside;
  const Node* p = g_.producer(value);
  if (!p || p->op != "Expand" || p->inputs.empty() || p->inputs[0] < 0) return false;
  const std::vector<int64_t>& shape = g_.values[p->inputs[0]].shape;
  return shape.size() >= 2 && std::all_of(shape.begin(), shape.end() - 2, [](int64_t d) { return d == 1; });
}

bool Matcher::one_for_all(int index, size_t rank, int64_t& copies) {
  if (index < 0) return false;
  const Value& v = g_.values[index];
  if (view(index).held() || row_of_[index] >= 0) return false;
  const std::vector<int64_t>& shape = v.is_constant ? v.constant.shape : v.shape;
  if (shape.size() < 2 || shape.size() > rank) return false;
  // What nothing spreads here has a copy for every head already.
  if (copies < 0 && shape.size() != rank) return false;
  if (copies < 0 && !v.is_constant) {
    copies = Relative::kSpread;
    return m_.reshapes[v.name].spread_outside = spread_outside(index);
  }
  if (!v.is_constant) {
    for (size_t i = 0; i + 2 < shape.size(); ++i)
      if (shape[i] != 1) return false;
    return true;
  }
  const Constant& c = v.constant;
  if ((c.type != Type::kInt64 && c.type != Type::kInt32) || !c.data || !whole(c) || c.count == 0) return false;
  const size_t bytes = static_cast<size_t>(shape[shape.size() - 2] * shape.back()) * (c.type == Type::kInt64 ? 8 : 4);
  const size_t stored = c.count * (c.type == Type::kInt64 ? 8 : 4) / bytes;
  if (copies < 0) copies = static_cast<int64_t>(stored);
  for (size_t i = 1; i < stored; ++i)
    if (std::memcmp(c.as<char>(), c.as<char>() + i * bytes, bytes) != 0) return false;
  return true;
}

bool Matcher::pick_positions(int n) {
  const View v = view(in(n, 0));
  if (!v.held() || v.layout != Layout::kPositions || v.form != Form::kFloat) return false;
  if (!is_last(node(n).integer("axis", 0), v.flat)) return fail("it picks positions along an axis that is not their own");
  View as_scores = v;
  as_scores.layout = Layout::kRelative;
  const auto shape = shape_of(as_scores);
  const size_t rank = v.flat ? 3 : 4;
  int64_t copies = 0;
  const int index = before_spread(in(n, 1), *shape, &copies);
  if (!one_for_all(index, rank, copies) || (copies > 0 && copies % (m_.ops[v.op].width / v.head_dim) != 0))
    return fail("its positions are not the same for every sequence and head");
  as_scores.by_query.index = index;
  as_scores.by_query.copies = copies;
  as_scores.by_query.factor = v.factor;
  as_scores.by_query.rounding = v.score_rounding;
  as_scores.score_rounding = Quantization{0.f};
  as_scores.factor = 1.f;
  as_scores.key = -1;
  return show(n, as_scores);
}

void Matcher::turn_relative(View& v) {
  const int query = v.by_query.used() ? v.op : -1, key = v.by_key.used() ? v.key : -1;
  std::swap(v.by_query, v.by_key);
  v.key = query;
  v.op = key >= 0 ? key : query;
}

bool Matcher::add_relative(int n, const View& a, const View& b) {
  if (!b.held() || b.layout == Layout::kPositions || a.flat != b.flat || a.head_dim != b.head_dim)
    return fail("what relative positions add meets something that is no scores of the same heads");
  if (a.layout != Layout::kScores && b.layout == Layout::kScores) return add_relative(n, b, a);
  if (b.layout != Layout::kRelative) return fail("what relative positions add meets something that is no scores");
  View v = a;
  const bool scores = v.layout == Layout::kScores;
  if (v.form != Form::kFloat) return false;
  if ((b.by_query.used() && v.by_query.used()) || (b.by_key.used() && v.by_key.used())) return fail("relative positions are added twice");
  if (b.by_query.used()) {
    if (scores && v.op != b.op) return fail("relative positions are of other queries than its scores");
    v.by_query = b.by_query;
    v.op = b.op;
  }
  if (b.by_key.used()) {
    if (scores && v.key != b.key) return fail("relative positions are of other keys than its scores");
    v.by_key = b.by_key;
    v.key = b.key;
  }
  return show(n, v);
}

}  // namespace obert
