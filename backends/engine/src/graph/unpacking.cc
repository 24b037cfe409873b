#include "unpacking.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "constants.h"

namespace obert {
namespace {

constexpr int kDeepest = 128;       // nodes on a way to a small constant
constexpr size_t kLargest = 16;     // its elements

using Numbers = std::optional<std::vector<double>>;

// Evaluates nodes over small constants, each value once.
class Evaluator {
 public:
  explicit Evaluator(const Graph& g) : g_(g) {}

  Numbers of(int value, int depth = 0) {
    if (value < 0 || depth > kDeepest) return std::nullopt;
    auto [place, fresh] = known_.try_emplace(value);
    if (!fresh) return place->second;
    Numbers result = g_.constant(value) ? stored(*g_.constant(value)) : computed(value, depth);
    if (result && result->size() > kLargest) result.reset();
    known_[value] = result;
    return result;
  }

 private:
  static Numbers stored(const Constant& c) {
    if (!whole(c) || c.count > kLargest) return std::nullopt;
    std::vector<double> x(c.count);
    for (size_t i = 0; i < c.count; ++i) switch (c.type) {
        case Type::kFloat: x[i] = c.as<float>()[i]; break;
        case Type::kUInt8: x[i] = c.as<uint8_t>()[i]; break;
        case Type::kInt8: x[i] = c.as<int8_t>()[i]; break;
        case Type::kInt32: x[i] = c.as<int32_t>()[i]; break;
        case Type::kInt64: x[i] = static_cast<double>(c.as<int64_t>()[i]); break;
        default: return std::nullopt;
      }
    return x;
  }

  Numbers computed(int value, int depth) {
    const Node* n = g_.producer(value);
    if (!n || n->inputs.empty()) return std::nullopt;
    Numbers x = of(n->inputs[0], depth + 1);
    if (!x) return std::nullopt;
    if (n->op == "Identity") return x;
    if (n->op == "Abs") return each(*x, [](double v) { return std::fabs(v); });
    if (n->op == "Cast") return cast(*x, n->integer("to", 0));
    if (n->inputs.size() != 2) return std::nullopt;
    Numbers y = of(n->inputs[1], depth + 1);
    if (!y || y->empty()) return std::nullopt;
    if (n->op == "Expand") return expand(*x, *y);
    if (n->op == "Add" && x->size() == 1 && y->size() == 1) return std::vector<double>{x->front() + y->front()};
    if (y->size() != 1 || !(y->front() > 0)) return std::nullopt;
    const double scale = y->front();
    if (n->op == "DequantizeLinear") return each(*x, [&](double v) { return v * scale; });
    if (n->op == "QuantizeLinear" && n->integer("output_dtype", 0) == 0)
      return each(*x, [&](double v) { return std::clamp(std::nearbyint(v / scale), 0., 255.); });
    return std::nullopt;
  }

  template <class F>
  static Numbers each(std::vector<double> x, F f) {
    for (double& v : x) v = f(v);
    return x;
  }
  // Only numbers that every type holds.
  static Numbers cast(const std::vector<double>& x, int64_t to) {
    bool integers = to == static_cast<int64_t>(Type::kInt64) || to == static_cast<int64_t>(Type::kUInt8);
    if (!integers && to != static_cast<int64_t>(Type::kFloat)) return std::nullopt;
    for (double v : x)
      if (!(v >= 0 && v <= 255) || v != std::floor(v)) return std::nullopt;
    return x;
  }
  static Numbers expand(const std::vector<double>& x, const std::vector<double>& shape) {
    if (x.size() != 1 || shape.size() != 1 || !(shape[0] >= 1 && shape[0] <= kLargest)) return std::nullopt;
    return std::vector<double>(static_cast<size_t>(shape[0]), x[0]);
  }

  const Graph& g_;
  std::map<int, Numbers> known_;
};

class Reader {
 public:
  Reader(const Graph& g, const Reshapes& known, std::string& reason) : g_(g), known_(known), reason_(reason) {}

  std::optional<Unpacked> run(int value) {
    int last = made_by(value, "Reshape");
    if (last < 0) return std::nullopt;
    int scatter = made_by(g_.input(last, 0), "ScatterND");
    if (scatter < 0) return std::nullopt;
    found_.nodes = {last, scatter};
    found_.name = g_.values[g_.nodes[scatter].outputs[0]].name;
    if (!read_values(scatter) || !read_shape(last) || !read_zeros(scatter) || !read_gaps(g_.input(scatter, 1)))
      return std::nullopt;
    std::reverse(found_.nodes.begin(), found_.nodes.end());
    return std::move(found_);
  }

 private:
  int made_by(int value, const char* op) const {
    int n = value >= 0 ? g_.values[value].producer : -1;
    return n >= 0 && g_.nodes[n].op == op ? n : -1;
  }
  bool fail(const char* why) {
    reason_ = why;
    return false;
  }

  bool read_values(int scatter) {
    const Node& n = g_.nodes[scatter];
    auto reduction = n.strings.find("reduction");
    if (reduction != n.strings.end() && reduction->second != "none") return fail("its packed matrix adds up blocks");
    const Constant* c = g_.constant(g_.input(scatter, 2));
    if (!c || c->shape.size() != 2 || !whole(*c) || c->count == 0) return fail("its packed values are no constant matrix");
    if (c->type != Type::kFloat && c->type != Type::kInt8 && c->type != Type::kUInt8)
      return fail("its packed values are of a type that the engine does not compute");
    found_.matrix.values = c;
    found_.matrix.block = c->shape[1];
    return true;
  }

  bool read_shape(int reshape) {
    auto shape = integers(g_, g_.input(reshape, 1));
    if (!shape || shape->size() != 2) return fail("its packed matrix has no constant shape");
    found_.matrix.rows = (*shape)[0];
    found_.matrix.columns = (*shape)[1];
    for (int64_t d : *shape)
      if (d < 1 || d > (1 << 20)) return fail("its packed matrix has no constant shape");
    if (found_.matrix.block > found_.matrix.rows * found_.matrix.columns) return fail("its packed blocks are no part of it");
    return true;
  }

  // How many blocks of zeros there are at first, and that nothing else is in them.
  bool read_zeros(int scatter) {
    int zeros = g_.input(scatter, 0);
    auto said = known_.find(found_.name);
    if (said != known_.end()) {
      blocks_ = said->second.blocks;
    } else {
      int maker = made_by(zeros, "ConstantOfShape");
      auto shape = integers(g_, maker < 0 ? -1 : g_.input(maker, 0));
      if (!shape || shape->size() != 2 || (*shape)[1] != found_.matrix.block || !g_.nodes[maker].fills_with_zeros)
        return fail("its packed blocks are not put among zeros");
      blocks_ = (*shape)[0];
    }
    int64_t elements = found_.matrix.rows * found_.matrix.columns;   // at most 2^40
    if (elements % found_.matrix.block != 0 || blocks_ != elements / found_.matrix.block)
      return fail("its packed blocks do not make up its shape");
    found_.matrix.blocks = blocks_;
    return true;
  }

  bool read_gaps(int places) {
    int sum = made_by(places, "CumSum");
    if (sum < 0) return fail("the places of its packed blocks are no sum of gaps");
    const Node& n = g_.nodes[sum];
    bool first = known_.count(found_.name) || along_first(g_.input(sum, 1));
    if (!first || n.integer("exclusive", 0) != 0 || n.integer("reverse", 0) != 0)
      return fail("the places of its packed blocks are no sum of gaps");
    found_.nodes.push_back(sum);
    int value = g_.input(sum, 0);
    int wide = made_by(value, "Cast");
    if (wide < 0 || g_.nodes[wide].integer("to", 0) != static_cast<int>(Type::kInt64))
      return fail("the gaps between its packed blocks are not widened to int64");
    found_.nodes.push_back(wide);
    value = g_.input(wide, 0);
    int64_t stored = found_.matrix.values->shape[0];
    int late = made_by(value, "Reshape");
    if (late >= 0) {
      if (!known_.count(found_.name) && !keeps_shape(late, stored)) return fail("the gaps between its packed blocks change their shape");
      found_.nodes.push_back(late);
      value = g_.input(late, 0);
    }
    int bytes = made_by(value, "Cast");
    if (bytes >= 0) {
      if (g_.nodes[bytes].integer("to", 0) != static_cast<int>(Type::kUInt8)) return fail("the gaps between its packed blocks are no bytes");
      found_.nodes.push_back(bytes);
      value = g_.input(bytes, 0);
    }
    const Constant* gaps = g_.constant(value);
    if (!gaps || (gaps->type != Type::kUInt8 && gaps->type != Type::kUInt4) || !whole(*gaps) ||
        gaps->shape != std::vector<int64_t>{stored, 1})
      return fail("the gaps between its packed blocks are no constant, one for each");
    found_.matrix.gaps = gaps;
    uint64_t end = 0;
    for (size_t i = 0; i < gaps->count; ++i) end += found_.matrix.gap(i);
    if (end >= static_cast<uint64_t>(blocks_)) return fail("its packed blocks reach beyond its end");
    return true;
  }

  // Whether a sum goes along the first axis of two.
  bool along_first(int axis) const {
    const Constant* c = g_.constant(axis);
    if (c && c->type == Type::kInt32 && c->count == 1 && whole(*c)) return *c->as<int32_t>() == 0;
    auto computed = computed_integers(g_, axis);   // files whose sums wait for their turn
    return computed && computed->size() == 1 && (computed->front() == 0 || computed->front() == -2);
  }

  // Whether Reshape `n` leaves [stored, 1] as it is.
  bool keeps_shape(int n, int64_t stored) const {
    auto target = computed_integers(g_, g_.input(n, 1));
    if (!target || target->size() != 2 || g_.nodes[n].integer("allowzero", 0) != 0) return false;
    const int64_t have[2] = {stored, 1};
    int open = 0;
    for (int i = 0; i < 2; ++i) {
      int64_t d = (*target)[static_cast<size_t>(i)];
      open += d == -1;
      if (d != 0 && d != -1 && d != have[i]) return false;
    }
    return open < 2;
  }

  const Graph& g_;
  const Reshapes& known_;
  std::string& reason_;
  Unpacked found_;
  int64_t blocks_ = 0;
};

}  // namespace

std::optional<std::vector<int64_t>> computed_integers(const Graph& g, int value) {
  if (g.constant(value)) return integers(g, value);
  Numbers x = Evaluator(g).of(value);
  if (!x) return std::nullopt;
  std::vector<int64_t> result;
  for (double v : *x) {
    if (!(v >= 0 && v <= 255)) return std::nullopt;
    result.push_back(static_cast<int64_t>(v));
  }
  return result;
}

std::optional<Unpacked> unpacked(const Graph& g, int value, const Reshapes& known, std::string& reason) {
  return Reader(g, known, reason).run(value);
}

}  // namespace obert
