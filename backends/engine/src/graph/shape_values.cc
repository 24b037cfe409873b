#include "shape_values.h"

#include <algorithm>

#include "constants.h"

namespace obert {
namespace {

constexpr int kDeepest = 16;       // nodes between a Shape and its use
constexpr size_t kLongest = 16;    // elements of a shape

using Dims = std::optional<std::vector<Dim>>;

Dims elements(const Graph& g, int value, const ShapeOf& shape_of, int depth);

// Slice bounds as ONNX counts them.
size_t bound(int64_t at, size_t n) {
  auto size = static_cast<int64_t>(n);
  if (at < 0) at = at < -size ? 0 : at + size;
  return static_cast<size_t>(std::min(at, size));
}

Dims shape(const Graph& g, const Node& n, const ShapeOf& shape_of) {
  Dims all = shape_of(n.inputs[0]);
  int64_t start = n.integer("start", 0), end = n.integer("end", INT64_MAX);
  if (!all) {
    // Of an unknown tensor: one element where the attributes cut one out.
    if (start >= 0 && end == start + 1) return std::vector<Dim>{Dim{}};
    return std::nullopt;
  }
  size_t from = bound(start, all->size()), to = bound(end, all->size());
  (void)g;
  return from <= to ? Dims(std::vector<Dim>(all->begin() + static_cast<std::ptrdiff_t>(from), all->begin() + static_cast<std::ptrdiff_t>(to)))
                    : std::nullopt;
}

Dims gather(const Graph& g, const Node& n, const ShapeOf& shape_of, int depth) {
  const Constant* at = g.constant(n.inputs.size() > 1 ? n.inputs[1] : -1);
  auto indices = integers(g, n.inputs.size() > 1 ? n.inputs[1] : -1);
  if (!at || !indices || at->shape.size() > 1) return std::nullopt;
  Dims all = elements(g, n.inputs[0], shape_of, depth);
  std::vector<Dim> picked;
  for (int64_t i : *indices) {
    if (!all) {
      picked.push_back(Dim{});
      continue;
    }
    if (i < 0) i += static_cast<int64_t>(all->size());
    if (i < 0 || i >= static_cast<int64_t>(all->size())) return std::nullopt;
    picked.push_back((*all)[static_cast<size_t>(i)]);
  }
  return picked;
}

Dims slice(const Graph& g, const Node& n, const ShapeOf& shape_of, int depth) {
  Dims all = elements(g, n.inputs[0], shape_of, depth);
  auto start = integers(g, n.inputs.size() > 1 ? n.inputs[1] : -1), end = integers(g, n.inputs.size() > 2 ? n.inputs[2] : -1);
  if (!all || !start || !end || start->size() != 1 || end->size() != 1) return std::nullopt;
  if (n.inputs.size() > 4 && n.inputs[4] >= 0) {
    auto step = integers(g, n.inputs[4]);
    if (!step || step->size() != 1 || (*step)[0] != 1) return std::nullopt;
  }
  size_t from = bound((*start)[0], all->size()), to = bound((*end)[0], all->size());
  if (from > to) return std::nullopt;
  return std::vector<Dim>(all->begin() + static_cast<std::ptrdiff_t>(from), all->begin() + static_cast<std::ptrdiff_t>(to));
}

// Of known numbers, as bounds of halves are computed.
Dims arithmetic(const Graph& g, const Node& n, const ShapeOf& shape_of, int depth) {
  Dims a = elements(g, n.inputs[0], shape_of, depth), b = n.inputs.size() > 1 ? elements(g, n.inputs[1], shape_of, depth) : std::nullopt;
  constexpr int64_t kLarge = 1 << 30;
  if (!a || !b || a->size() != 1 || b->size() != 1) return std::nullopt;
  for (const Dim* d : {&a->front(), &b->front()})
    if (d->kind != Dim::kNumber || d->number < 0 || d->number > kLarge) return std::vector<Dim>{Dim{}};
  const int64_t x = a->front().number, y = b->front().number;
  if (n.op == "Div" && y == 0) return std::vector<Dim>{Dim{}};
  return std::vector<Dim>{Dim::of(n.op == "Add" ? x + y : n.op == "Mul" ? x * y : x / y)};
}

// Where(Equal(shape, -1), 1, shape), as torch spreads to a shape whose -1 leave a dimension as it is: the shape, where it
// has none.
Dims without_open(const Graph& g, const Node& n, const ShapeOf& shape_of, int depth) {
  const Node* equal = g.producer(n.inputs[0]);
  if (n.inputs.size() < 3 || !equal || equal->op != "Equal") return std::nullopt;
  if (equal->inputs.size() != 2 || (equal->inputs[0] != n.inputs[2] && equal->inputs[1] != n.inputs[2])) return std::nullopt;
  Dims all = elements(g, n.inputs[2], shape_of, depth);
  for (size_t i = 0; all && i < all->size(); ++i)
    if ((*all)[i].is(-1)) (*all)[i] = Dim{};
  return all;
}

Dims elements(const Graph& g, int value, const ShapeOf& shape_of, int depth) {
  if (value < 0 || depth > kDeepest) return std::nullopt;
  if (g.constant(value)) {
    auto numbers = integers(g, value);
    if (!numbers || numbers->size() > kLongest) return std::nullopt;
    std::vector<Dim> dims;
    for (int64_t n : *numbers) dims.push_back(Dim::of(n));
    return dims;
  }
  const Node* n = g.producer(value);
  if (!n || n->inputs.empty()) return std::nullopt;
  if (n->op == "Shape") return shape(g, *n, shape_of);
  if (n->op == "Gather") return gather(g, *n, shape_of, depth + 1);
  if (n->op == "Slice") return slice(g, *n, shape_of, depth + 1);
  if (n->op == "Unsqueeze" || n->op == "Squeeze" || n->op == "Reshape" || n->op == "Cast" || n->op == "Identity")
    return elements(g, n->inputs[0], shape_of, depth + 1);
  if (n->op == "Add" || n->op == "Mul" || n->op == "Div") return arithmetic(g, *n, shape_of, depth + 1);
  if (n->op == "Where") return without_open(g, *n, shape_of, depth + 1);
  if (n->op != "Concat") return std::nullopt;
  std::vector<Dim> all;
  for (int part : n->inputs) {
    Dims more = elements(g, part, shape_of, depth + 1);
    // A part of unknown make is taken for one element: Reshape compares their number with the rank.
    if (!more) more = std::vector<Dim>{Dim{}};
    all.insert(all.end(), more->begin(), more->end());
    if (all.size() > kLongest) return std::nullopt;
  }
  return all;
}

}  // namespace

std::optional<std::vector<Dim>> shape_elements(const Graph& graph, int value, const ShapeOf& shape_of) {
  return elements(graph, value, shape_of, 0);
}

}  // namespace obert
