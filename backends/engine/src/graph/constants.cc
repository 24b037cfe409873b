#include "constants.h"

#include "unpacking.h"

#include <cmath>
#include <cstring>

namespace obert {
namespace {

// Elements that a shape promises; nothing where it is no shape or overflows.
std::optional<size_t> elements(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t d : shape) {
    if (d < 0 || (d > 0 && count > (size_t{1} << 40) / static_cast<size_t>(d))) return std::nullopt;
    count *= static_cast<size_t>(d);
  }
  return count;
}

std::optional<int> integer_at(const Constant& c, size_t i) {
  switch (c.type) {
    case Type::kInt8: return c.as<int8_t>()[i];
    case Type::kUInt8: return c.as<uint8_t>()[i];
    case Type::kInt32: return c.as<int32_t>()[i];
    default: return std::nullopt;
  }
}

// Scales and zero points of a DequantizeLinear, spread over `count` places.
bool spread(const Graph& g, const Node& node, size_t count, std::vector<float>& scale, std::vector<int>& zero) {
  const Constant* s = g.constant(node.inputs.size() > 1 ? node.inputs[1] : -1);
  if (!s || s->type != Type::kFloat || !whole(*s) || (s->count != 1 && s->count != count)) return false;
  scale.resize(count);
  for (size_t i = 0; i < count; ++i) {
    scale[i] = s->as<float>()[s->count == 1 ? 0 : i];
    if (!std::isfinite(scale[i])) return false;
  }
  zero.clear();
  int zp_value = node.inputs.size() > 2 ? node.inputs[2] : -1;
  if (zp_value < 0) return true;
  const Constant* z = g.constant(zp_value);
  if (!z || !whole(*z) || (z->count != 1 && z->count != count)) return false;
  zero.resize(count);
  for (size_t i = 0; i < count; ++i) {
    auto v = integer_at(*z, z->count == 1 ? 0 : i);
    if (!v) return false;
    zero[i] = *v;
  }
  return true;
}

int64_t axis_of(const Node& node, size_t rank) {
  int64_t axis = node.integer("axis", 1);
  return axis < 0 ? axis + static_cast<int64_t>(rank) : axis;
}

}  // namespace

bool whole(const Constant& c) {
  auto count = elements(c.shape);
  return count && *count == c.count && (c.count == 0 || c.data != nullptr);
}

std::optional<std::vector<int64_t>> integers(const Graph& g, int value) {
  const Constant* c = g.constant(value);
  if (!c || c->type != Type::kInt64 || !whole(*c)) return std::nullopt;
  return std::vector<int64_t>(c->as<int64_t>(), c->as<int64_t>() + c->count);
}

std::optional<std::vector<int64_t>> axes(const Graph& g, const Node& node) {
  const auto listed = node.int_lists.find("axes");
  if (listed != node.int_lists.end()) return listed->second;
  return integers(g, node.inputs.size() > 1 ? node.inputs[1] : -1);
}

namespace {

std::optional<std::vector<float>> stored_floats(const Graph& g, int value) {
  const Constant* c = g.constant(value);
  if (!c || c->type != Type::kFloat || !whole(*c)) return std::nullopt;
  return std::vector<float>(c->as<float>(), c->as<float>() + c->count);
}

// All elements of a float constant, of one behind DequantizeLinear, or of one to which a number is added.
std::optional<std::vector<float>> floats(const Graph& g, int value) {
  if (g.constant(value)) return stored_floats(g, value);
  const Node* node = g.producer(value);
  if (node && node->op == "Add" && node->inputs.size() == 2) {
    auto x = stored_floats(g, node->inputs[0]), y = stored_floats(g, node->inputs[1]);
    if (!x || !y) return std::nullopt;
    if (x->size() == 1) std::swap(x, y);
    if (y->size() != 1) return std::nullopt;
    for (float& one : *x) one += y->front();
    return x;
  }
  if (!node || node->op != "DequantizeLinear" || node->inputs.empty()) return std::nullopt;
  const Constant* c = g.constant(node->inputs[0]);
  if (!c || c->shape.size() > 1 || !whole(*c) || node->integer("block_size", 0) != 0) return std::nullopt;
  std::vector<float> scale;
  std::vector<int> zero;
  if (!spread(g, *node, c->count, scale, zero)) return std::nullopt;
  std::vector<float> result(c->count);
  for (size_t i = 0; i < c->count; ++i) {
    auto v = integer_at(*c, i);
    if (!v) return std::nullopt;
    result[i] = scale[i] * static_cast<float>(static_cast<int64_t>(*v) - (zero.empty() ? 0 : zero[i]));
  }
  return result;
}

const Constant* stored(const Graph& g, int value) {
  const Node* node = g.producer(value);
  if (!node || node->inputs.empty() || g.constant(value)) return g.constant(value);
  const Constant* first = g.constant(node->inputs[0]);
  const bool sum = node->op == "Add" && node->inputs.size() == 2;
  return sum && first && first->count == 1 ? g.constant(node->inputs[1]) : first;
}

}  // namespace

std::optional<float> scalar(const Graph& g, int value) {
  const Constant* c = stored(g, value);
  if (!c || c->count != 1) return std::nullopt;
  auto all = floats(g, value);
  return all ? std::optional<float>((*all)[0]) : std::nullopt;
}

std::optional<std::vector<float>> vector(const Graph& g, int value, size_t count) {
  const Constant* c = stored(g, value);
  if (!c || c->count == 0 || (count != 0 && c->count != count)) return std::nullopt;
  for (size_t i = 0; i + 1 < c->shape.size(); ++i)
    if (c->shape[i] != 1) return std::nullopt;
  return floats(g, value);
}

std::optional<Quantization> quantization(const Graph& g, const Node& node) {
  if (node.inputs.size() < 2 || node.integer("block_size", 0) != 0) return std::nullopt;
  auto scale = scalar(g, node.inputs[1]);
  if (!scale || !(*scale > 0) || !std::isfinite(*scale)) return std::nullopt;
  Quantization q;
  q.scale = *scale;
  int zp_value = node.inputs.size() > 2 ? node.inputs[2] : -1;
  if (zp_value < 0) {
    // Without a zero point QuantizeLinear makes uint8, unless output_dtype says otherwise.
    int64_t type = node.integer("output_dtype", 0);
    if (node.op == "DequantizeLinear" || (type != 0 && type != static_cast<int>(Type::kUInt8))) return std::nullopt;
    return q;
  }
  const Constant* z = g.constant(zp_value);
  if (!z || z->count != 1 || !whole(*z)) return std::nullopt;
  if (z->type == Type::kUInt8) {
    q.zero_point = z->as<uint8_t>()[0];
  } else if (z->type == Type::kInt8) {
    q.zero_point = z->as<int8_t>()[0] + 128;
    q.is_signed = true;
  } else {
    return std::nullopt;
  }
  return q;
}

std::optional<Matrix> matrix(const Graph& g, int value, bool transposed, const Reshapes& known, std::string& reason) {
  Matrix m;
  Weights& w = m.weights;
  bool swapped = transposed;
  const Node* dequantize = nullptr;
  bool axis_swapped = false;   // whether DequantizeLinear's result is [outputs, inputs]
  for (int depth = 0; depth < 4; ++depth) {
    if (const Constant* c = g.constant(value)) {
      w.matrix = c;
      break;
    }
    const Node* node = g.producer(value);
    if (!node || node->inputs.empty()) break;
    if (node->op == "Reshape") {
      auto packed = unpacked(g, value, known, reason);
      if (!packed) {
        if (!reason.empty()) return std::nullopt;
        break;
      }
      w.packed = packed->matrix;
      m.unpacking = packed->nodes;
      m.unpacked = packed->name;
      m.nodes.insert(m.nodes.end(), packed->nodes.begin(), packed->nodes.end());
      break;
    }
    if (node->op == "Transpose") {
      auto perm = node->int_lists.find("perm");
      if (perm != node->int_lists.end() && perm->second != std::vector<int64_t>{1, 0}) {
        reason = "its matrix is transposed in more than two dimensions";
        return std::nullopt;
      }
      swapped = !swapped;
    } else if (node->op == "DequantizeLinear" && !dequantize) {
      if (node->integer("block_size", 0) != 0) {
        reason = "its matrix is quantised in blocks";
        return std::nullopt;
      }
      dequantize = node;
      axis_swapped = swapped;
    } else {
      break;
    }
    m.nodes.push_back(g.values[value].producer);
    value = node->inputs[0];
  }
  if (!w.matrix && !w.packed.values) {
    reason = "its second factor is no constant";
    return std::nullopt;
  }
  std::vector<int64_t> shape = w.matrix ? w.matrix->shape : std::vector<int64_t>{w.packed.rows, w.packed.columns};
  if (shape.size() != 2 || (w.matrix && (!whole(*w.matrix) || w.matrix->count == 0)) || shape[0] > (1 << 20) || shape[1] > (1 << 20)) {
    reason = "its constant is no matrix";
    return std::nullopt;
  }
  w.outputs_first = swapped;
  w.inputs = static_cast<int>(shape[swapped ? 1 : 0]);
  w.outputs = static_cast<int>(shape[swapped ? 0 : 1]);
  if (!dequantize) {
    if (w.type() != Type::kFloat) {
      reason = "its matrix is of a type that the engine does not compute";
      return std::nullopt;
    }
    return m;
  }
  if (w.type() != Type::kInt8 && w.type() != Type::kUInt8) {
    reason = "its matrix is quantised to another type than int8 or uint8";
    return std::nullopt;
  }
  size_t n = static_cast<size_t>(w.outputs);
  if (!spread(g, *dequantize, n, w.scale, w.zero_point)) {
    reason = "the scales or zero points of its matrix are no constants, one for all or one for each output";
    return std::nullopt;
  }
  const Constant* s = g.constant(dequantize->inputs[1]);
  if (s->count != 1) {
    if (axis_of(*dequantize, 2) != (axis_swapped ? 0 : 1)) {
      reason = "its matrix has scales along the inputs";
      return std::nullopt;
    }
  }
  return m;
}

}  // namespace obert
