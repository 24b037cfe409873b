// Attention with relative positions (DeBERTa), in the forms that exporters give it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <vector>

#include "builder.h"
#include "reference.h"

namespace obert::testing {

struct Relatively {
  enum Terms { kBoth, kQueries, kKeys } terms = kBoth;
  enum Index { kSpread, kConstant, kSpreadConstant } index = kSpread;
  enum Masked { kNo, kFilled, kFilledUnless, kCleared, kAdded } masked = kNo;
  bool joined = true;          // batch and heads are one dimension
  bool tiled = true;           // tables are repeated for each sequence, or else turned beforehand
  bool positions_first = false;   // the terms are added up before the scores
  bool spread_mask = false;    // to the shape of the scores
  bool rounded = false;        // tables and all products are quantised and dequantised
  bool weighed = false;        // tokens are multiplied by weights of their own first, as padding is by 0
  bool picked = false;         // one token is read
};

struct Disentangled {
  static constexpr int kWide = 48, kCount = 3, kEach = 16, kColumns = 20;

  Builder b;
  Numbers r;
  Relatively form;
  int batch, length;
  std::map<int, Array> known;
  std::map<int, Type> types;
  int index_ = -1, other_index_ = -1, mask_ = -1;

  Disentangled(const Relatively& f, int sequences, int tokens)
      : r(static_cast<uint32_t>(f.terms * 100 + f.index * 10 + tokens)), form(f), batch(sequences), length(tokens) {}

  // For each two tokens, beginning with the query, or with the key.
  Array positions(bool by_query, int64_t copies) const {
    Array a;
    a.shape = form.joined ? std::vector<int64_t>{copies, length, length}
                          : std::vector<int64_t>{copies > 1 ? batch : 1, copies > 1 ? kCount : 1, length, length};
    for (int64_t c = 0; c < copies; ++c)
      for (int i = 0; i < length; ++i)
        for (int j = 0; j < length; ++j) {
          const int distance = by_query ? i - j : j - i;
          // Of far neighbours, two share one, as logarithms do.
          const int bucket = std::abs(distance) < 6 ? distance : (distance > 0 ? 3 : -3) + distance / 2;
          a.data.push_back(std::clamp(bucket + kColumns / 2, 0, kColumns - 1) - (distance == 2 ? kColumns : 0));
        }
    return a;
  }

  int index(bool by_query) {
    int& value = by_query ? index_ : other_index_;
    if (value >= 0) return value;
    const bool whole = form.index == Relatively::kConstant;
    const Array a = positions(by_query, whole ? batch * kCount : 1);
    if (form.index == Relatively::kSpread) {
      value = b.input(by_query ? "index" : "other index", form.joined ? std::vector<int64_t>{1, -1, -1} : std::vector<int64_t>{1, 1, -1, -1});
      known[value] = a;
      types[value] = Type::kInt64;
    } else {
      value = b.constant(std::vector<int64_t>(a.data.begin(), a.data.end()));
      b.graph.values[value].constant.shape = a.shape;
    }
    if (whole) return value;
    value = b.node("Expand", {value, b.constant(form.joined ? std::vector<int64_t>{batch * kCount, length, length}
                                                                   : std::vector<int64_t>{batch, kCount, length, length})});
    b.describe(value, form.joined ? std::vector<int64_t>{-1, -1, -1} : std::vector<int64_t>{-1, -1, -1, -1});
    return value;
  }

  int mask() {
    if (mask_ >= 0) return mask_;
    mask_ = b.input("mask");
    Array& a = known[mask_];
    a.shape = {batch, 1, length, length};
    const bool added = form.masked == Relatively::kAdded, counts = form.masked == Relatively::kFilledUnless;
    for (int s = 0; s < batch; ++s)
      for (int i = 0; i < length; ++i)
        for (int j = 0; j < length; ++j) {
          const bool masked = j >= length - 2 * s || i >= length - 2 * s;   // of padding, no key counts
          a.data.push_back(added ? (masked ? -3.4028234663852886e38 : 0) : masked != counts);
        }
    if (!added) types[mask_] = Type::kBool;
    return mask_;
  }

  // [batch, heads, length, size], or joined.
  int heads(int x) {
    const int split = b.node("Reshape", {quantized_linear(b, r, x, kWide, kWide, 0.5f), b.constant({0, 0, kCount, -1})});
    const int turned = b.transpose(split, {0, 2, 1, 3});
    return form.joined ? b.node("Reshape", {turned, b.constant({-1, length, kEach})}) : turned;
  }
  int last_turned(int x) { return b.transpose(x, form.joined ? std::vector<int64_t>{0, 2, 1} : std::vector<int64_t>{0, 1, 3, 2}); }

  int rounded(int x, float scale) { return form.rounded ? b.fake_quantize(x, scale, 120) : x; }

  int term(int x, bool by_query) {
    std::vector<int64_t> shape = {kCount, kColumns, kEach};
    if (!form.tiled) std::swap(shape[1], shape[2]);
    if (!form.joined) shape.insert(shape.begin(), 1);
    int table = b.constant(shape, r.normals(static_cast<size_t>(kCount * kColumns * kEach)));
    if (form.tiled) {
      std::vector<int64_t> counts(shape.size(), 1);
      counts[0] = batch;
      table = last_turned(rounded(b.node("Tile", {table, b.constant(counts)}), 0.04f));
    } else if (form.joined && batch > 1) {
      table = b.node("Tile", {table, b.constant({batch, 1, 1})});
    }
    Node last;
    last.ints["axis"] = -1;
    const int products = rounded(b.node("MatMul", {x, rounded(table, 0.03f)}), 0.3f);
    int y = b.node("GatherElements", {products, index(by_query)}, last);
    if (!by_query) y = last_turned(y);
    return b.node("Div", {y, b.scalar(7.f)});
  }

  int scores(int q, int k) {
    int s = rounded(b.node("MatMul", {q, b.node("Div", {last_turned(k), b.scalar(6.f)})}), 0.2f);
    std::vector<int> terms;
    if (form.terms != Relatively::kKeys) terms.push_back(term(q, true));
    if (form.terms != Relatively::kQueries) terms.push_back(term(k, false));
    if (form.positions_first && terms.size() == 2) return b.node("Add", {b.node("Add", {terms[0], terms[1]}), s});
    for (int t : terms) s = b.node("Add", {s, t});
    return s;
  }

  int masked(int s) {
    if (form.masked == Relatively::kNo) return s;
    if (form.masked == Relatively::kAdded) return b.node("Add", {s, mask()});
    const int fill = b.scalar(-3.4028234663852886e38f);
    if (form.masked == Relatively::kFilledUnless) return b.node("Where", {condition(), s, fill});
    return b.node("Where", {condition(), fill, s});
  }
  int condition() {
    return form.spread_mask ? b.node("Expand", {mask(), b.constant({batch, kCount, length, length})}) : mask();
  }

  int weighed(int hidden) {
    if (!form.weighed) return hidden;
    const int weights = b.input("weights", {-1, -1, 1});
    Array& a = known[weights];
    a.shape = {batch, length, 1};
    for (int i = 0; i < batch * length; ++i) a.data.push_back(i % 5 == 4 ? 0. : 1. + i % 2);
    return b.node("Mul", {layer_norm(b, r, hidden, kWide), weights});
  }

  int layer(int hidden) {
    const int x = b.fake_quantize(hidden, 0.03f, 125), q = heads(x), k = heads(x), v = heads(x);
    int s = scores(q, k);
    if (form.joined) s = b.node("Reshape", {s, b.constant({-1, kCount, length, length})});
    int p = b.node("Softmax", {masked(s)}, [] { Node n; n.ints["axis"] = -1; return n; }());
    if (form.masked == Relatively::kCleared) p = b.node("Where", {condition(), b.scalar(0.f), p});
    if (form.joined) p = b.node("Reshape", {p, b.constant({-1, length, length})});
    int context = b.node("MatMul", {p, v});
    if (form.joined) context = b.node("Reshape", {context, b.constant({-1, kCount, length, kEach})});
    const int joined = b.node("Reshape", {b.transpose(context, {0, 2, 1, 3}), b.constant({0, 0, kWide})});
    return b.node("Add", {hidden, quantized_linear(b, r, b.fake_quantize(joined, 0.02f, 120), kWide, kWide, 0.5f)});
  }
};

}  // namespace obert::testing
