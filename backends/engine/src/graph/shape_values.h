// What is known of a tensor that holds a shape, the target of a Reshape above all.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "graph.h"

namespace obert {

struct Dim {
  enum Kind : uint8_t { kBatch, kLength, kNumber, kUnknown } kind = kUnknown;
  int64_t number = 0;   // kNumber

  static Dim of(int64_t n) { return {kNumber, n}; }
  bool is(int64_t n) const { return kind == kNumber && number == n; }
  // May be the batch (or the length): it is, or nothing contradicts it. Static shapes name a number.
  bool may_be(Kind k) const { return kind == k || kind == kUnknown || (kind == kNumber && number != -1); }
  // Whether Expand to this leaves `d` as it is, as far as is known.
  bool leaves(const Dim& d) const { return is(1) || (d.kind == kNumber ? is(d.number) || kind == kUnknown : may_be(d.kind)); }
};

using ShapeOf = std::function<std::optional<std::vector<Dim>>(int value)>;

// The elements of `value`, followed through Shape, Gather, Slice, Concat, Unsqueeze, Squeeze, Reshape,
// Cast and Where; `shape_of` knows the shapes of tensors that the engine holds. Nothing where even their
// number is unknown.
std::optional<std::vector<Dim>> shape_elements(const Graph& graph, int value, const ShapeOf& shape_of);

}  // namespace obert
