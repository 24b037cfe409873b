// Some features of a product, or one of the parts that it stacks (queries, keys and values of one matrix). Each is a product
// of its own with the same input, and with what comes after it feature by feature: what exporters write as several products
// meets the same steps, and products of one input are joined again when steps are made.
#include "matcher_state.h"

#include <algorithm>
#include <cstdint>

#include "constants.h"

namespace obert {
namespace {

constexpr int kDeepest = 16;   // roundings, biases and activations behind a product before it is cut

std::optional<int64_t> only(const std::optional<std::vector<int64_t>>& list) {
  return list && list->size() == 1 ? std::optional<int64_t>(list->front()) : std::nullopt;
}

}  // namespace

int64_t Matcher::extent(const View& v, int64_t axis) const {
  if (v.plain() && v.layout == Layout::kTokens) return axis == 2 || axis == -1 ? m_.ops[v.op].width : 0;
  if (v.plain() && v.layout == Layout::kMatrix) return axis == 1 || axis == -1 ? m_.ops[v.op].width : 0;
  if (v.layout == Layout::kStackedHeads) return axis == 2 || axis == -3 ? v.parts : 0;
  if (v.held() && whole_heads(v)) return axis == 3 || axis == -1 ? v.head_dim : 0;
  return 0;
}

View Matcher::part(const View& v, int64_t axis, int64_t begin, int64_t end) {
  const int64_t size = extent(v, axis);
  View w = v;
  w.op = -1;
  if (begin < 0 || begin >= end || end > size) return w;
  if (whole_heads(v)) {
    if (2 * (end - begin) != size || (begin != 0 && end != size)) return w;
    w.op = v.op;
    w.heads = v.layout;
    w.layout = begin == 0 ? Layout::kFirstHalf : Layout::kSecondHalf;
    return w;
  }
  if (v.of_tokens()) {
    w.op = columns(v.op, static_cast<int>(begin), static_cast<int>(end - begin));
  } else if (end == begin + 1) {
    const int width = m_.ops[v.op].width / v.parts;
    w.op = columns(v.op, static_cast<int>(begin) * width, width);
    w.layout = Layout::kStackedPart;
    w.parts = 1;
  }
  return w;
}

int Matcher::columns(int op, int begin, int width, int depth) {
  Op some = m_.ops[op];
  if (some.kind == OpKind::kLinear) {
    some.begin += begin;
  } else {
    const bool by_feature = some.kind == OpKind::kQuantize || some.kind == OpKind::kDequantize || some.kind == OpKind::kActivate ||
                            some.kind == OpKind::kScale || some.kind == OpKind::kShift;
    if (!by_feature || depth == kDeepest) return -1;
    some.inputs = {columns(some.inputs[0], begin, width, depth + 1)};
    if (some.inputs[0] < 0) return -1;
    const auto cut = [begin, width](const std::vector<float>& all) { return std::vector<float>(all.begin() + begin, all.begin() + begin + width); };
    if (some.kind == OpKind::kScale) some.gamma = cut(m_.ops[op].gamma);
    if (some.kind == OpKind::kShift) some.beta = cut(m_.ops[op].beta);
  }
  some.width = width;
  for (size_t i = 0; i < m_.ops.size(); ++i) {
    const Op& o = m_.ops[i];
    if (o.kind == some.kind && o.inputs == some.inputs && o.width == width && o.weights == some.weights && o.begin == some.begin &&
        o.activation == some.activation && o.gamma == some.gamma && o.beta == some.beta && o.quantization.same(some.quantization) &&
        o.quantization.is_signed == some.quantization.is_signed)
      return static_cast<int>(i);
  }
  return add(some);
}

std::optional<int64_t> Matcher::bound(int value) const {
  if (g_.constant(value)) return only(integers(g_, value));
  auto dims = shape_elements(g_, value, [this](int x) { return shape_of(x); });
  return dims && dims->size() == 1 && dims->front().kind == Dim::kNumber ? std::optional<int64_t>(dims->front().number) : std::nullopt;
}

bool Matcher::cut(int n) {
  const View v = view(in(n, 0));
  if (!v.held() || out(n) < 0) return false;
  if (node(n).op == "Gather") {
    const auto at = only(integers(g_, in(n, 1)));
    const int64_t axis = node(n).integer("axis", 0);
    if (!at || v.layout != Layout::kStackedHeads) return false;
    View w = part(v, axis, *at < 0 ? *at + v.parts : *at, (*at < 0 ? *at + v.parts : *at) + 1);
    if (g_.constant(in(n, 1))->shape.empty()) w.layout = Layout::kSequenceHeads;
    return w.held() && show(n, w);
  }
  const auto begin = bound(in(n, 1)), end = bound(in(n, 2)), axis = only(integers(g_, in(n, 3)));
  if (!begin || !end || !axis) return false;
  if (in(n, 4) >= 0 && only(integers(g_, in(n, 4))) != 1) return false;
  const int64_t size = extent(v, *axis);
  const auto inside = [size](int64_t at) { return at < 0 ? std::max<int64_t>(at, -size) + size : std::min(at, size); };
  const View w = part(v, *axis, inside(*begin), inside(*end));
  return w.held() && show(n, w);
}

bool Matcher::split(int n) {
  const View v = view(in(n, 0));
  const Node& p = node(n);
  const int64_t axis = p.integer("axis", 0), size = extent(v, axis), count = static_cast<int64_t>(p.outputs.size());
  if (size == 0 || count == 0) return false;
  std::vector<int64_t> sizes(p.outputs.size(), size / count);
  const auto listed = p.int_lists.find("split");
  if (listed != p.int_lists.end()) sizes = listed->second;
  else if (in(n, 1) >= 0) sizes = integers(g_, in(n, 1)).value_or(std::vector<int64_t>{});
  else if (size % count != 0) return false;
  if (sizes.size() != p.outputs.size()) return false;
  std::vector<View> parts;
  int64_t begin = 0;
  for (int64_t length : sizes) {
    if (length < 1 || length > size - begin) return false;
    parts.push_back(part(v, axis, begin, begin + length));
    if (!parts.back().held()) return false;
    begin += length;
  }
  if (begin != size) return false;
  for (size_t i = 0; i < parts.size(); ++i)
    if (p.outputs[i] >= 0) m_.views[p.outputs[i]] = parts[i];
  return true;
}

bool Matcher::squeeze(int n) {
  View v = view(in(n, 0));
  if (!v.held() || v.layout != Layout::kStackedPart) return false;
  const auto axis = only(axes(g_, node(n)));
  if (axis != 2 && axis != -3) return false;
  v.layout = Layout::kSequenceHeads;
  v.parts = 0;
  return show(n, v);
}

}  // namespace obert
