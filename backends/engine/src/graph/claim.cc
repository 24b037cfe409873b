// Which nodes go together into one fused node: what cannot be handed over is kept inside, parts are
// convex, and each matches by itself.
#include <algorithm>

#include "matcher.h"

namespace obert {
namespace {

// Bars producers of values that something outside reads and that cannot be handed over. `place` is
// the part of each node, -1 outside. True when nothing had to be barred.
bool consistent(const Graph& g, const Match& m, const std::vector<int>& place, std::vector<char>& barred) {
  bool fine = true;
  // What an op reads from outside must not be made inside as something else.
  for (const Op& op : m.ops)
    for (int value : {op.value, op.masks[0].value, op.masks[1].value, op.by_query.index, op.by_key.index}) {
      int p = value >= 0 ? g.values[value].producer : -1;
      if (p < 0 || place[p] < 0) continue;
      barred[p] = 1;
      fine = false;
    }
  for (int n = 0; n < static_cast<int>(g.nodes.size()); ++n) {
    if (place[n] < 0) continue;
    for (int value : g.nodes[n].outputs) {
      if (value < 0 || m.views[value].plain()) continue;
      bool outside = g.values[value].is_output;
      for (int consumer : g.values[value].consumers) outside = outside || place[consumer] != place[n];
      if (outside) {
        barred[n] = 1;
        fine = false;
      }
    }
  }
  return fine;
}

// Part of each node, -1 outside. Nodes are in one part when they are connected and the longest way
// to them leaves the claimed nodes and returns equally often, which makes every part convex.
std::vector<int> parts_of(const Graph& g, const Match& m, int& count) {
  int nodes = static_cast<int>(g.nodes.size());
  std::vector<int> stage(nodes, -1), parent(nodes);
  auto claimed = [&](int n) { return m.claimed[n] != 0; };
  for (int n = 0; n < nodes; ++n) {
    parent[n] = n;
    if (claimed(n)) stage[n] = 0;
    for (int value : g.nodes[n].inputs) {
      int p = value >= 0 ? g.values[value].producer : -1;
      if (p >= 0) stage[n] = std::max(stage[n], stage[p] + (claimed(n) && !claimed(p) ? 1 : 0));
    }
  }
  // What only later parts read goes with them: matrices and shapes with their products, products of
  // the first layer with its attention. No way out and back gets shorter by that.
  for (int n = nodes - 1; n >= 0; --n) {
    if (!claimed(n)) continue;
    int least = -1;
    bool inside = true;
    for (int value : g.nodes[n].outputs) {
      if (value < 0) continue;
      inside = inside && !g.values[value].is_output;
      for (int consumer : g.values[value].consumers) {
        inside = inside && claimed(consumer);
        least = least < 0 ? stage[consumer] : std::min(least, stage[consumer]);
      }
    }
    if (inside && least > stage[n]) stage[n] = least;
  }
  auto root = [&](int n) {
    while (parent[n] != n) n = parent[n] = parent[parent[n]];
    return n;
  };
  for (int n = 0; n < nodes; ++n) {
    if (!claimed(n)) continue;
    for (int value : g.nodes[n].inputs) {
      int p = value >= 0 && m.views[value].held() ? g.values[value].producer : -1;
      if (p >= 0 && claimed(p) && stage[p] == stage[n]) parent[root(n)] = root(p);
    }
  }
  // Tensors tie a part together, of the same tokens; matrices and shapes go with those that read them. Where these are of
  // two parts, which may have other tokens each, they go with neither.
  for (bool changed = true; changed;) {
    changed = false;
    for (int n = nodes - 1; n >= 0; --n) {
      if (!claimed(n)) continue;
      int reader = -1;
      bool one = true;
      for (int value : g.nodes[n].outputs) {
        if (value < 0) continue;
        one = one && !g.values[value].is_output && !m.views[value].held();
        for (int consumer : g.values[value].consumers) {
          one = one && claimed(consumer) && stage[consumer] == stage[n] && (reader < 0 || root(reader) == root(consumer));
          reader = consumer;
        }
      }
      if (!one || reader < 0 || root(n) == root(reader)) continue;
      parent[root(n)] = root(reader);
      changed = true;
    }
  }
  std::vector<int> place(nodes, -1), number(nodes, -1);
  count = 0;
  for (int n = 0; n < nodes; ++n) {
    if (!claimed(n)) continue;
    int r = root(n);
    if (number[r] < 0) number[r] = count++;
    place[n] = number[r];
  }
  return place;
}

// A product, or an embedding from its tables to its normalisation: less is not worth the copies.
bool worthwhile(const Match& m) {
  bool product = false, rows = false, norm = false;
  for (const Op& op : m.ops) {
    product = product || op.kind == OpKind::kLinear;
    rows = rows || op.kind == OpKind::kRows;
    norm = norm || op.kind == OpKind::kLayerNorm;
  }
  return product || (rows && norm);
}

std::string first_unmatched(const Graph& g, const Match& m) {
  for (size_t n = 0; n < g.nodes.size(); ++n) {
    if (m.claimed[n]) continue;
    int value = g.nodes[n].outputs.empty() ? -1 : g.nodes[n].outputs[0];
    std::string text = ": " + g.nodes[n].op + (value >= 0 ? " '" + g.values[value].name + "'" : "");
    for (const Skip& skip : m.skips)
      if (skip.node == static_cast<int>(n)) text += ", " + skip.reason;
    return text;
  }
  return "";
}

const char* const kWorthAReason[] = {"MatMul", "Gemm", "Softmax", "Attention", "LayerNormalization", "RMSNormalization"};

// Matrices that nodes unpack, and products and normalisations, of constants alone and in no part: they would be computed at
// every call where nothing folds them first. This comes before other reasons: the first one of a node is told.
void tell_of_constants(const Graph& g, Claims& claims) {
  std::vector<char> taken(g.nodes.size(), 0), fixed(g.nodes.size(), 0);
  std::vector<Skip> skips;
  for (const Part& part : claims.parts)
    for (int n : part) taken[n] = 1;
  for (int n = 0; n < static_cast<int>(g.nodes.size()); ++n) {
    const Node& node = g.nodes[n];
    fixed[n] = !node.inputs.empty() && std::all_of(node.inputs.begin(), node.inputs.end(), [&](int value) {
      return value < 0 || g.constant(value) || (g.values[value].producer >= 0 && fixed[g.values[value].producer]);
    });
    if (!fixed[n] || taken[n]) continue;
    if (node.op == "ScatterND") skips.push_back({n, "it unpacks a matrix that the engine does not take: fold constants first"});
    for (const char* op : kWorthAReason)
      if (node.op == op) skips.push_back({n, "it is computed of constants alone: fold constants first"});
  }
  claims.wants_folding = !skips.empty();
  claims.skips.insert(claims.skips.begin(), skips.begin(), skips.end());
}

}  // namespace

Graph part_graph(const Graph& g, const Part& part) {
  std::vector<int> place(g.nodes.size(), -1);
  for (size_t i = 0; i < part.size(); ++i) place[part[i]] = static_cast<int>(i);
  Graph sub;
  sub.values = g.values;
  for (Value& v : sub.values) {
    std::vector<int> inside;
    for (int consumer : v.consumers)
      if (place[consumer] >= 0) inside.push_back(place[consumer]);
    v.is_output = v.is_output || inside.size() != v.consumers.size();
    v.consumers = inside;
    v.producer = v.producer >= 0 ? place[v.producer] : -1;
  }
  for (int n : part) sub.nodes.push_back(g.nodes[n]);
  return sub;
}

Claims claim(const Graph& graph) {
  std::vector<char> barred(graph.nodes.size(), 0);
  Densities densities;
  Match m;
  std::vector<int> place;
  int count = 0;
  bool fine = false;
  // Each round bars a node or is the last.
  while (!fine) {
    m = match(graph, barred, {}, densities);
    place = parts_of(graph, m, count);
    fine = consistent(graph, m, place, barred);
  }
  Claims claims;
  claims.skips = m.skips;
  claims.reshapes = m.reshapes;
  std::vector<Part> parts(static_cast<size_t>(count));
  for (int n = 0; n < static_cast<int>(graph.nodes.size()); ++n)
    if (place[n] >= 0) parts[place[n]].push_back(n);
  for (Part& part : parts) {
    Graph alone = part_graph(graph, part);
    Match again = match(alone, m.reshapes);
    bool complete = std::all_of(again.claimed.begin(), again.claimed.end(), [](char c) { return c != 0; });
    std::vector<int> one(alone.nodes.size(), 0);
    std::vector<char> none(alone.nodes.size(), 0);
    complete = complete && consistent(alone, again, one, none);
    if (complete && worthwhile(again)) {
      claims.parts.push_back(std::move(part));
      continue;
    }
    std::string why = complete ? "it stands alone, without a product that the engine computes"
                               : "what it is connected with does not match by itself" + first_unmatched(alone, again);
    for (int n : part)
      for (const char* op : kWorthAReason)
        if (graph.nodes[n].op == op) claims.skips.push_back({n, why});
  }
  for (size_t n = 0; n < barred.size(); ++n)
    for (const char* op : kWorthAReason)
      if (barred[n] && graph.nodes[n].op == op)
        claims.skips.push_back({static_cast<int>(n), "what reads its result is not computed in the engine"});
  tell_of_constants(graph, claims);
  return claims;
}

}  // namespace obert
