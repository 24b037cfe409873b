// A naive interpreter of the ops that the engine claims, in double: the oracle of whole programs.
#pragma once
#include <cmath>
#include <map>
#include <stdexcept>
#include <vector>

#include "../../src/graph/graph.h"

namespace obert::testing {

struct Array {
  std::vector<int64_t> shape;
  std::vector<double> data;

  static int64_t count(const std::vector<int64_t>& shape) {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

// Between results, element by element; NaN beside a number is endless.
struct Differences {
  double most = 0, mean = 0;

  Differences(const Array& got, const Array& expected) {
    for (size_t i = 0; i < got.data.size(); ++i) {
      const double d = std::fabs(got.data[i] - expected.data[i]);
      if (!(d <= most)) most = d == d ? d : INFINITY;
      mean += d / static_cast<double>(got.data.size());
    }
  }
};

class Reference {
 public:
  explicit Reference(const Graph& graph) : g_(graph) {}

  // Values of all of the graph, given those of its inputs.
  std::map<int, Array> run(std::map<int, Array> known) {
    known_ = std::move(known);
    for (const Node& n : g_.nodes) {
      if (n.op == "Split") split(n);
      else known_[n.outputs[0]] = evaluate(n);
    }
    return std::move(known_);
  }

 private:
  Array get(int value) {
    if (const Constant* c = g_.constant(value)) {
      Array a;
      a.shape = c->shape;
      for (size_t i = 0; i < c->count; ++i) {
        switch (c->type) {
          case Type::kFloat: a.data.push_back(c->as<float>()[i]); break;
          case Type::kInt8: a.data.push_back(c->as<int8_t>()[i]); break;
          case Type::kUInt8: a.data.push_back(c->as<uint8_t>()[i]); break;
          case Type::kInt64: a.data.push_back(static_cast<double>(c->as<int64_t>()[i])); break;
          default: throw std::runtime_error("reference: type of a constant");
        }
      }
      return a;
    }
    return known_.at(value);
  }

  // f over two arrays of shapes that broadcast, aligned at their ends.
  template <class F>
  static Array broadcast(const Array& a, const Array& b, F f) {
    size_t rank = std::max(a.shape.size(), b.shape.size());
    auto padded = [&](const Array& x) {
      std::vector<int64_t> s(rank - x.shape.size(), 1);
      s.insert(s.end(), x.shape.begin(), x.shape.end());
      return s;
    };
    std::vector<int64_t> sa = padded(a), sb = padded(b);
    Array out;
    for (size_t i = 0; i < rank; ++i) out.shape.push_back(std::max(sa[i], sb[i]));
    int64_t n = Array::count(out.shape);
    out.data.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      int64_t rest = i, ia = 0, ib = 0, ta = 1, tb = 1;
      for (size_t d = rank; d-- > 0;) {
        int64_t at = rest % out.shape[d];
        rest /= out.shape[d];
        ia += (sa[d] == 1 ? 0 : at) * ta;
        ib += (sb[d] == 1 ? 0 : at) * tb;
        ta *= sa[d];
        tb *= sb[d];
      }
      out.data[i] = f(a.data[ia], b.data[ib]);
    }
    return out;
  }

  template <class F>
  static Array each(Array a, F f) {
    for (double& x : a.data) x = f(x);
    return a;
  }

  static Array product(const Array& a, const Array& b) {
    int64_t n = a.shape[a.shape.size() - 2], k = a.shape.back(), m = b.shape.back();
    int64_t batches = Array::count(a.shape) / (n * k);
    const int64_t matrices = Array::count(b.shape) / (k * m);   // of fewer, the first dimension is spread
    Array out;
    out.shape = a.shape;
    out.shape.back() = m;
    out.data.assign(batches * n * m, 0);
    for (int64_t s = 0; s < batches; ++s)
      for (int64_t i = 0; i < n; ++i)
        for (int64_t l = 0; l < k; ++l)
          for (int64_t j = 0; j < m; ++j)
            out.data[(s * n + i) * m + j] += a.data[(s * n + i) * k + l] * b.data[(s % matrices * k + l) * m + j];
    return out;
  }

  static Array transpose(const Array& a, const std::vector<int64_t>& perm) {
    Array out;
    for (int64_t p : perm) out.shape.push_back(a.shape[p]);
    std::vector<int64_t> stride(perm.size(), 1);
    for (size_t d = perm.size() - 1; d-- > 0;) stride[d] = stride[d + 1] * a.shape[d + 1];
    out.data.resize(a.data.size());
    for (size_t i = 0; i < out.data.size(); ++i) {
      int64_t rest = static_cast<int64_t>(i), from = 0;
      for (size_t d = perm.size(); d-- > 0;) {
        from += rest % out.shape[d] * stride[perm[d]];
        rest /= out.shape[d];
      }
      out.data[i] = a.data[from];
    }
    return out;
  }

  Array evaluate(const Node& n) {
    auto in = [&](size_t i) { return get(n.inputs[i]); };
    if (n.op == "QuantizeLinear" || n.op == "DequantizeLinear") return quantisation(n);
    if (n.op == "MatMul") return product(in(0), in(1));
    if (n.op == "Add") return broadcast(in(0), in(1), [](double x, double y) { return x + y; });
    if (n.op == "Mul") return broadcast(in(0), in(1), [](double x, double y) { return x * y; });
    if (n.op == "Gelu") return each(in(0), [](double x) { return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5))); });
    if (n.op == "Relu") return each(in(0), [](double x) { return x > 0 ? x : 0 * x; });
    if (n.op == "Tanh") return each(in(0), [](double x) { return std::tanh(x); });
    if (n.op == "Sigmoid") return each(in(0), [](double x) { return 1 / (1 + std::exp(-x)); });
    if (n.op == "IsNaN") return each(in(0), [](double x) { return std::isnan(x) ? 1. : 0.; });
    if (n.op == "Where") return where(in(0), in(1), in(2));
    if (n.op == "GatherElements") return gather_of_last(in(0), in(1));
    if (n.op == "Expand" || n.op == "Tile") return spread(in(0), in(1), n.op == "Tile");
    if (n.op == "Transpose") return transpose(in(0), n.int_lists.at("perm"));
    if (n.op == "Identity") return in(0);
    if (n.op == "Reshape") return reshape(in(0), in(1));
    if (n.op == "Neg") return each(in(0), [](double x) { return -x; });
    if (n.op == "Concat") return concat(in(0), in(1), n.integer("axis", 0));
    if (n.op == "Gather") return gather(in(0), static_cast<int64_t>(in(1).data[0]), n.integer("axis", 0), !in(1).shape.empty());
    if (n.op == "Slice") return slice(in(0), in(1).data[0], in(2).data[0], static_cast<int64_t>(in(3).data[0]));
    if (n.op == "Squeeze") return squeezed(in(0), static_cast<int64_t>(in(1).data[0]));
    if (n.op == "Unsqueeze") return unsqueezed(in(0), static_cast<int64_t>(in(1).data[0]));
    if (n.op == "Softmax") return softmax(in(0));
    if (n.op == "LayerNormalization") return layer_norm(n);
    if (n.op == "RMSNormalization") return rms_norm(n);
    if (n.op == "RotaryEmbedding") return rotary(in(0), in(1), in(2), n.integer("num_heads", 0));
    if (n.op == "Attention") return attention(n);
    if (n.op == "Pow") return broadcast(in(0), in(1), [](double x, double y) { return std::pow(x, y); });
    if (n.op == "Div") return broadcast(in(0), in(1), [](double x, double y) { return x / y; });
    if (n.op == "Sqrt") return each(in(0), [](double x) { return std::sqrt(x); });
    if (n.op == "Reciprocal") return each(in(0), [](double x) { return 1 / x; });
    if (n.op == "ReduceMean") return mean_of_last(in(0));
    throw std::runtime_error("reference: op " + n.op);
  }

  static size_t place(const Array& a, int64_t axis) {
    return static_cast<size_t>(axis < 0 ? axis + static_cast<int64_t>(a.shape.size()) : axis);
  }

  // Bounds as ONNX counts them.
  static Array slice(const Array& a, double from, double to, int64_t axis) {
    const size_t d = place(a, axis);
    const int64_t size = a.shape[d];
    const auto bound = [size](double at) { return static_cast<int64_t>(std::min(std::max(at < 0 ? at + static_cast<double>(size) : at, 0.), static_cast<double>(size))); };
    const int64_t begin = bound(from), end = bound(to);
    Array out;
    out.shape = a.shape;
    out.shape[d] = end - begin;
    int64_t inner = 1, outer = 1;
    for (size_t i = d + 1; i < a.shape.size(); ++i) inner *= a.shape[i];
    for (size_t i = 0; i < d; ++i) outer *= a.shape[i];
    for (int64_t o = 0; o < outer; ++o)
      out.data.insert(out.data.end(), a.data.begin() + (o * size + begin) * inner, a.data.begin() + (o * size + end) * inner);
    return out;
  }

  static Array gather(const Array& a, int64_t at, int64_t axis, bool keeps_axis) {
    const size_t d = place(a, axis);
    if (at < 0) at += a.shape[d];
    const Array one = slice(a, static_cast<double>(at), static_cast<double>(at + 1), axis);
    return keeps_axis ? one : squeezed(one, axis);
  }

  static Array squeezed(Array a, int64_t axis) {
    a.shape.erase(a.shape.begin() + static_cast<std::ptrdiff_t>(place(a, axis)));
    return a;
  }

  static Array unsqueezed(Array a, int64_t axis) {
    a.shape.insert(a.shape.begin() + axis, 1);
    return a;
  }

  static Array concat(const Array& a, const Array& b, int64_t axis) {
    const size_t d = place(a, axis);
    int64_t left = 1, right = 1;
    for (size_t i = d; i < a.shape.size(); ++i) left *= a.shape[i], right *= b.shape[i];
    Array out;
    out.shape = a.shape;
    out.shape[d] += b.shape[d];
    for (int64_t o = 0; o * left < static_cast<int64_t>(a.data.size()); ++o) {
      out.data.insert(out.data.end(), a.data.begin() + o * left, a.data.begin() + (o + 1) * left);
      out.data.insert(out.data.end(), b.data.begin() + o * right, b.data.begin() + (o + 1) * right);
    }
    return out;
  }

  void split(const Node& n) {
    const Array a = get(n.inputs[0]);
    const int64_t axis = n.integer("axis", 0);
    const auto count = static_cast<int64_t>(n.outputs.size());
    std::vector<double> sizes(n.outputs.size(), static_cast<double>(a.shape[place(a, axis)] / count));
    if (n.inputs.size() > 1) sizes = get(n.inputs[1]).data;
    double begin = 0;
    for (size_t i = 0; i < sizes.size(); ++i, begin += sizes[i - 1]) known_[n.outputs[i]] = slice(a, begin, begin + sizes[i], axis);
  }

  // Of either side, what is not asked for counts for nothing, NaN or not.
  static Array where(const Array& condition, const Array& x, const Array& y) {
    const Array first = broadcast(condition, x, [](double c, double v) { return c != 0 ? v : 0; });
    const Array second = broadcast(condition, y, [](double c, double v) { return c != 0 ? 0 : v; });
    return broadcast(first, second, [](double a, double b) { return a + b; });
  }

  static Array gather_of_last(const Array& a, const Array& index) {
    Array out = index;
    const int64_t from = a.shape.back(), to = index.shape.back();
    for (size_t i = 0; i < out.data.size(); ++i) {
      const auto at = static_cast<int64_t>(index.data[i]);
      out.data[i] = a.data[static_cast<size_t>(static_cast<int64_t>(i) / to * from + (at < 0 ? at + from : at))];
    }
    return out;
  }

  // Expand to a shape, or Tile by counts.
  static Array spread(const Array& a, const Array& by, bool counts) {
    if (!counts) {
      Array zeros;
      zeros.shape.assign(by.data.begin(), by.data.end());
      zeros.data.assign(static_cast<size_t>(Array::count(zeros.shape)), 0);
      return broadcast(a, zeros, [](double x, double) { return x; });
    }
    Array out = a;   // counts beside the first are 1
    out.shape[0] *= static_cast<int64_t>(by.data[0]);
    out.data.clear();
    for (int64_t i = 0; i < static_cast<int64_t>(by.data[0]); ++i) out.data.insert(out.data.end(), a.data.begin(), a.data.end());
    return out;
  }

  Array quantisation(const Node& n) {
    Array x = get(n.inputs[0]), s = get(n.inputs[1]), z;
    if (n.inputs.size() > 2 && n.inputs[2] >= 0) z = get(n.inputs[2]);
    bool whole = s.data.size() == 1;
    const Constant* zero = n.inputs.size() > 2 ? g_.constant(n.inputs[2]) : nullptr;
    bool is_signed = zero && zero->type == Type::kInt8;
    for (size_t i = 0; i < x.data.size(); ++i) {
      size_t at = whole ? 0 : i % s.data.size();   // scales along the last axis
      double zp = z.data.empty() ? 0 : z.data[at];
      if (n.op == "DequantizeLinear") {
        x.data[i] = (x.data[i] - zp) * s.data[at];
      } else {
        double q = std::nearbyint(x.data[i] / s.data[at]) + zp, low = is_signed ? -128 : 0;
        x.data[i] = std::min(std::max(q, low), low + 255);
      }
    }
    return x;
  }

  static Array reshape(Array a, const Array& target) {
    std::vector<int64_t> shape;
    int64_t known = 1, open = -1;
    for (size_t i = 0; i < target.data.size(); ++i) {
      auto d = static_cast<int64_t>(target.data[i]);
      if (d == 0) d = a.shape[i];
      if (d == -1) open = static_cast<int64_t>(i);
      else known *= d;
      shape.push_back(d);
    }
    if (open >= 0) shape[open] = static_cast<int64_t>(a.data.size()) / known;
    a.shape = shape;
    return a;
  }

  static Array softmax(Array a) {
    auto n = static_cast<size_t>(a.shape.back());
    for (size_t row = 0; row < a.data.size(); row += n) {
      double most = -INFINITY, sum = 0;
      for (size_t i = 0; i < n; ++i) most = std::max(most, a.data[row + i]);
      for (size_t i = 0; i < n; ++i) sum += a.data[row + i] = std::exp(a.data[row + i] - most);
      for (size_t i = 0; i < n; ++i) a.data[row + i] /= sum;
    }
    return a;
  }

  Array layer_norm(const Node& node) {
    Array a = get(node.inputs[0]), gamma = get(node.inputs[1]), beta = get(node.inputs[2]);
    auto n = static_cast<size_t>(a.shape.back());
    for (size_t row = 0; row < a.data.size(); row += n) {
      double mean = 0, variance = 0;
      for (size_t i = 0; i < n; ++i) mean += a.data[row + i] / static_cast<double>(n);
      for (size_t i = 0; i < n; ++i) variance += std::pow(a.data[row + i] - mean, 2) / static_cast<double>(n);
      for (size_t i = 0; i < n; ++i)
        a.data[row + i] = (a.data[row + i] - mean) / std::sqrt(variance + node.real("epsilon", 1e-5f)) * gamma.data[i] + beta.data[i];
    }
    return a;
  }

  // [batch, sequence, heads * size] as heads, and back.
  static Array heads_of(Array a, int64_t heads) {
    a.shape = {a.shape[0], a.shape[1], heads, a.shape[2] / heads};
    return transpose(a, {0, 2, 1, 3});
  }
  static Array tokens_of(const Array& a) {
    Array t = transpose(a, {0, 2, 1, 3});
    t.shape = {t.shape[0], t.shape[1], t.shape[2] * t.shape[3]};
    return t;
  }

  // Of heads, or of tokens; tables are [batch or 1, sequence, size / 2].
  static Array rotary(const Array& x, const Array& cosine, const Array& sine, int64_t heads) {
    if (x.shape.size() == 3) return tokens_of(rotary(heads_of(x, heads), cosine, sine, heads));
    const auto half = static_cast<size_t>(x.shape[3] / 2), length = static_cast<size_t>(x.shape[2]), rows = static_cast<size_t>(x.shape[1]) * length;
    Array y = x;
    for (size_t at = 0; at < x.data.size(); at += 2 * half) {
      const size_t row = at / (2 * half), sequence = cosine.shape[0] == 1 ? 0 : row / rows, table = (sequence * length + row % length) * half;
      for (size_t d = 0; d < half; ++d) {
        y.data[at + d] = x.data[at + d] * cosine.data[table + d] - x.data[at + half + d] * sine.data[table + d];
        y.data[at + half + d] = x.data[at + half + d] * cosine.data[table + d] + x.data[at + d] * sine.data[table + d];
      }
    }
    return y;
  }

  // Heads [batch, heads, sequence, size], each so many times, one after another.
  static Array repeated(const Array& a, int64_t times) {
    Array out;
    out.shape = {a.shape[0], a.shape[1] * times, a.shape[2], a.shape[3]};
    const int64_t size = a.shape[2] * a.shape[3];
    for (int64_t h = 0; h < a.shape[0] * a.shape[1]; ++h)
      for (int64_t i = 0; i < times; ++i) out.data.insert(out.data.end(), a.data.begin() + h * size, a.data.begin() + (h + 1) * size);
    return out;
  }

  Array attention(const Node& n) {
    Array q = get(n.inputs[0]), k = get(n.inputs[1]), v = get(n.inputs[2]);
    const bool tokens = q.shape.size() == 3;
    if (tokens)
      for (Array* x : {&q, &k, &v}) *x = heads_of(*x, n.integer(x == &q ? "q_num_heads" : "kv_num_heads", 0));
    for (Array* x : {&k, &v}) *x = repeated(*x, q.shape[1] / x->shape[1]);
    const double scale = n.real("scale", static_cast<float>(1 / std::sqrt(static_cast<double>(q.shape[3]))));
    Array scores = each(product(q, transpose(k, {0, 1, 3, 2})), [scale](double x) { return x * scale; });
    if (n.inputs.size() > 3) scores = broadcast(scores, get(n.inputs[3]), [](double x, double y) { return x + y; });
    const Array y = product(softmax(scores), v);
    return tokens ? tokens_of(y) : y;
  }

  static Array mean_of_last(const Array& a) {
    const auto n = static_cast<size_t>(a.shape.back());
    Array out;
    out.shape = a.shape;
    out.shape.back() = 1;
    for (size_t row = 0; row < a.data.size(); row += n) {
      double sum = 0;
      for (size_t i = 0; i < n; ++i) sum += a.data[row + i];
      out.data.push_back(sum / static_cast<double>(n));
    }
    return out;
  }

  Array rms_norm(const Node& node) {
    Array a = get(node.inputs[0]), gamma = get(node.inputs[1]);
    const Array squares = mean_of_last(each(a, [](double x) { return x * x; }));
    for (size_t i = 0; i < a.data.size(); ++i)
      a.data[i] *= gamma.data[i % gamma.data.size()] / std::sqrt(squares.data[i / gamma.data.size()] + node.real("epsilon", 1e-5f));
    return a;
  }

  const Graph& g_;
  std::map<int, Array> known_;
};

}  // namespace obert::testing
