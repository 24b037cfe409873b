#include "patterns.h"

#include <cmath>

#include "constants.h"

namespace obert {
namespace {

// Walks a graph from node to node, along values that nothing else reads.
class Walk {
 public:
  explicit Walk(const Graph& g) : g_(g) {}

  int in(int n, size_t i) const { return g_.input(n, i); }
  int out(int n) const { return g_.nodes[n].outputs.empty() ? -1 : g_.nodes[n].outputs[0]; }
  bool is(int n, const char* op) const { return n >= 0 && g_.nodes[n].op == op; }
  int producer(int value) const { return value >= 0 ? g_.values[value].producer : -1; }
  // The one node that reads `value`, -1 where there is none, or several, or a graph output.
  int reader(int value) const {
    if (value < 0 || g_.values[value].is_output || g_.values[value].consumers.size() != 1) return -1;
    return g_.values[value].consumers[0];
  }
  int other(int n, int value) const { return in(n, 0) == value ? in(n, 1) : in(n, 0); }
  // Whether two values are the same numbers: one value, or dequantised alike from one, as for each reader of a quantised tensor.
  bool same(int a, int b) const {
    if (a == b) return true;
    const Node *x = g_.producer(a), *y = g_.producer(b);
    return x && y && x->op == "DequantizeLinear" && y->op == x->op && x->inputs == y->inputs && x->ints == y->ints;
  }
  bool near(int value, float x) const {
    auto s = scalar(g_, value);
    return s && std::fabs(*s - x) < 1e-4f * std::fabs(x);
  }
  // The axis of a ReduceMean over one alone, which it keeps and which may be the last: -1, 1 of a matrix, 2 of tokens, 3 of heads.
  std::optional<int64_t> last_axis(int n) const {
    const Node& node = g_.nodes[n];
    if (node.integer("keepdims", 1) != 1) return std::nullopt;
    const auto along = axes(g_, node);
    if (!along || along->size() != 1 || (*along)[0] < -1 || (*along)[0] == 0 || (*along)[0] > 3) return std::nullopt;
    return (*along)[0];
  }
  // The factor that is no constant, when `n` multiplies something by `x`; -1 otherwise.
  int times(int n, float x) const {
    if (!is(n, "Mul")) return -1;
    if (near(in(n, 1), x)) return in(n, 0);
    return near(in(n, 0), x) ? in(n, 1) : -1;
  }

 private:
  const Graph& g_;
};

// What follows 1 + f(x): the product with x and with a half, in any order.
std::optional<Pattern> half_of_x(const Walk& w, int f, int x, std::vector<int> nodes) {
  int plus = w.reader(w.out(f));
  if (!w.is(plus, "Add") || !w.near(w.other(plus, w.out(f)), 1.f)) return std::nullopt;
  int first = w.reader(w.out(plus));
  if (!w.is(first, "Mul")) return std::nullopt;
  nodes.insert(nodes.end(), {f, plus, first});
  int factor = w.other(first, w.out(plus));
  int last = first;
  if (w.same(factor, x) || w.near(factor, 0.5f)) {
    last = w.reader(w.out(first));
    if (!w.is(last, "Mul")) return std::nullopt;
    int rest = w.other(last, w.out(first));
    if (w.same(factor, x) ? !w.near(rest, 0.5f) : !w.same(rest, x)) return std::nullopt;
    nodes.push_back(last);
  } else {
    int half = w.producer(factor);
    if (!w.same(w.times(half, 0.5f), x) || w.reader(factor) != first) return std::nullopt;
    nodes.push_back(half);
  }
  Pattern p;
  p.x = x;
  p.last = last;
  p.nodes = std::move(nodes);
  return p;
}

// The value whose third power `value` is, as Pow or as products; -1 otherwise. Adds its nodes.
int cube_root(const Graph& g, const Walk& w, int value, std::vector<int>& nodes) {
  int n = w.producer(value);
  if (n < 0 || w.reader(value) < 0) return -1;
  if (w.is(n, "Pow")) {
    auto exponent = scalar(g, w.in(n, 1));
    if (!exponent || *exponent != 3.f) return -1;
    nodes.push_back(n);
    return w.in(n, 0);
  }
  if (!w.is(n, "Mul")) return -1;
  for (int side : {0, 1}) {
    int square = w.producer(w.in(n, side)), x = w.in(n, 1 - side);
    if (!w.is(square, "Mul") || w.in(square, 0) != x || w.in(square, 1) != x) continue;
    if (w.reader(w.in(n, side)) != n) continue;
    nodes.insert(nodes.end(), {n, square});
    return x;
  }
  return -1;
}

}  // namespace

std::optional<Pattern> gelu_around_erf(const Graph& g, int erf) {
  Walk w(g);
  int scaled = w.producer(w.in(erf, 0));
  if (scaled < 0 || w.reader(w.in(erf, 0)) != erf) return std::nullopt;
  int x = w.times(scaled, 0.70710678f);
  if (x < 0 && w.is(scaled, "Div") && w.near(w.in(scaled, 1), 1.41421356f)) x = w.in(scaled, 0);
  return x < 0 ? std::nullopt : half_of_x(w, erf, x, {scaled});
}

std::optional<Pattern> gelu_around_tanh(const Graph& g, int tanh) {
  Walk w(g);
  int scaled = w.producer(w.in(tanh, 0));
  if (scaled < 0 || w.reader(w.in(tanh, 0)) != tanh) return std::nullopt;
  int sum_value = w.times(scaled, 0.7978845608f);
  int sum = w.producer(sum_value);
  if (!w.is(sum, "Add") || w.reader(sum_value) != scaled) return std::nullopt;
  for (int side : {0, 1}) {
    int x = w.in(sum, side), term = w.in(sum, 1 - side);
    int factor = w.producer(term);
    std::vector<int> nodes = {scaled, sum, factor};
    int cube = w.times(factor, 0.044715f);
    if (cube < 0 || w.reader(term) != sum || !w.same(cube_root(g, w, cube, nodes), x)) continue;
    return half_of_x(w, tanh, x, nodes);
  }
  return std::nullopt;
}

std::optional<Pattern> swish_around_sigmoid(const Graph& g, int sigmoid, float factor) {
  Walk w(g);
  int product = w.reader(w.out(sigmoid));
  Pattern p;
  p.x = w.in(sigmoid, 0);
  p.last = product;
  p.nodes = {sigmoid, product};
  if (factor != 1.f) {
    const int scaled = w.producer(p.x);
    if (w.reader(p.x) != sigmoid) return std::nullopt;
    p.x = w.times(scaled, factor);
    p.nodes.push_back(scaled);
  }
  if (p.x < 0 || !w.is(product, "Mul") || !w.same(w.other(product, w.out(sigmoid)), p.x)) return std::nullopt;
  return p;
}

std::optional<Pattern> layer_norm_from_mean(const Graph& g, int mean) {
  Walk w(g);
  const auto axis = w.last_axis(mean);
  if (!axis) return std::nullopt;
  int x = w.in(mean, 0);
  int centred = w.reader(w.out(mean));
  if (!w.is(centred, "Sub") || w.in(centred, 0) != x || w.in(centred, 1) != w.out(mean)) return std::nullopt;
  int d = w.out(centred);
  if (d < 0) return std::nullopt;
  const auto& readers = g.values[d].consumers;
  int power = -1, quotient = -1;
  for (int r : readers) {
    if (w.is(r, "Div") && w.in(r, 0) == d) quotient = r;
    else power = r;
  }
  bool squares = w.is(power, "Pow") ? w.near(w.in(power, 1), 2.f)
                                    : w.is(power, "Mul") && w.in(power, 0) == d && w.in(power, 1) == d;
  if (!squares || quotient < 0 || g.values[d].is_output) return std::nullopt;
  if (readers.size() != (w.is(power, "Mul") ? 3u : 2u)) return std::nullopt;
  int variance = w.reader(w.out(power));
  if (!w.is(variance, "ReduceMean") || w.last_axis(variance) != axis) return std::nullopt;
  Pattern p;
  p.nodes = {mean, centred, power, variance, quotient};
  int next = w.reader(w.out(variance));
  if (w.is(next, "Add")) {
    auto epsilon = scalar(g, w.other(next, w.out(variance)));
    if (!epsilon) return std::nullopt;
    p.epsilon = *epsilon;
    p.nodes.push_back(next);
    next = w.reader(w.out(next));
  }
  if (!w.is(next, "Sqrt") || w.in(quotient, 1) != w.out(next) || w.reader(w.out(next)) != quotient) return std::nullopt;
  p.nodes.push_back(next);
  int scaled = w.reader(w.out(quotient));
  if (!w.is(scaled, "Mul")) return std::nullopt;
  auto gamma = vector(g, w.other(scaled, w.out(quotient)));
  int shifted = w.reader(w.out(scaled));
  if (!gamma || !w.is(shifted, "Add")) return std::nullopt;
  auto beta = vector(g, w.other(shifted, w.out(scaled)));
  if (!beta || beta->size() != gamma->size()) return std::nullopt;
  p.nodes.insert(p.nodes.end(), {scaled, shifted});
  p.x = x;
  p.last = shifted;
  p.axis = *axis;
  p.gamma = *gamma;
  p.beta = *beta;
  p.constants = {w.other(scaled, w.out(quotient)), w.other(shifted, w.out(scaled))};
  return p;
}

std::optional<Pattern> rms_norm_around_mean(const Graph& g, int mean) {
  Walk w(g);
  const int squares = w.in(mean, 0), square = w.producer(squares);
  const auto axis = w.last_axis(mean);
  if (!axis || square < 0 || w.reader(squares) != mean) return std::nullopt;
  const int x = w.in(square, 0);
  const bool squared = w.is(square, "Pow") ? w.near(w.in(square, 1), 2.f) : w.is(square, "Mul") && w.in(square, 1) == x;
  if (!squared || x < 0) return std::nullopt;
  Pattern p;
  p.centred = false;
  p.axis = *axis;
  p.x = x;
  p.nodes = {square, mean};
  p.square = square;
  // The one node after that, which must be of this kind.
  const auto follow = [&](const char* op) {
    const int next = w.reader(w.out(p.nodes.back()));
    if (!w.is(next, op)) return -1;
    p.nodes.push_back(next);
    return next;
  };
  const int sum = follow("Add");
  if (sum >= 0) {
    auto epsilon = scalar(g, w.other(sum, w.out(mean)));
    if (!epsilon) return std::nullopt;
    p.epsilon = *epsilon;
  }
  const int root = follow("Sqrt");
  if (root < 0) return std::nullopt;
  int scaled = follow("Div");   // x / root, or 1 / root
  if (scaled >= 0 && w.in(scaled, 1) != w.out(root)) return std::nullopt;
  if (scaled < 0 || w.in(scaled, 0) != x) {
    if (scaled < 0 ? follow("Reciprocal") < 0 : !w.near(w.in(scaled, 0), 1.f)) return std::nullopt;
    const int inverse = w.out(p.nodes.back());
    scaled = follow("Mul");
    if (scaled < 0 || w.other(scaled, inverse) != x) return std::nullopt;
  }
  p.last = follow("Mul");
  auto gamma = p.last < 0 ? std::nullopt : vector(g, w.other(p.last, w.out(scaled)));
  if (!gamma) return std::nullopt;
  p.gamma = *gamma;
  p.constants = {w.other(p.last, w.out(scaled))};
  return p;
}

}  // namespace obert
