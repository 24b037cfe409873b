// Graphs that nobody would write, one for each fault that was found: they are left alone or refused.
#include "builder.h"
#include "check.h"
#include "relative.h"
#include "run.h"

using namespace obert;
using namespace obert::testing;

namespace {

// Claims what can be claimed and compiles it. True when it went through.
bool compiles(const Graph& graph) {
  Claims claims = claim(graph);
  for (const Part& part : claims.parts) {
    Graph g = part_graph(graph, part);
    const Signature signature = signature_of(g);
    Executor(lower(g, match(g, claims.reshapes), signature, find_kernels("portable")), 1);
  }
  return true;
}

// Rows joined with themselves until their width passes 32 bits.
void rows_of_endless_width() {
  Builder b;
  Numbers r(1);
  int x = b.node("Gather", {b.constant({2, 16}, r.normals(32)), b.input("ids")});
  Node last;
  last.ints["axis"] = -1;
  for (int i = 0; i < 40; ++i) x = b.node("Concat", {x, x}, last);
  b.output(b.node("Add", {x, x}));
  Match m = match(b.graph);
  for (const RowTerm& t : m.rows.terms) CHECK(t.width >= 1 && t.width <= 1 << 17);
  CHECK(compiles(b.graph));
}

// A LayerNorm in parts whose difference goes nowhere.
void centred_without_result() {
  Builder b;
  Node last;
  last.int_lists["axes"] = {-1};
  int x = b.input("x");
  b.node("Sub", {x, b.node("ReduceMean", {x}, last)});
  b.graph.nodes.back().outputs = {-1};
  CHECK(compiles(b.graph));
  b.graph.nodes.back().outputs.clear();
  CHECK(compiles(b.graph));
}

// Tables of different length, gathered by the same indices and joined: each has its own bounds.
void tables_of_different_length() {
  for (const char* op : {"Add", "Concat"}) {
    Builder b;
    Numbers r(1);
    int ids = b.input("ids");
    auto rows = [&](int64_t n) { return b.node("Gather", {b.constant({n, 8}, r.normals(static_cast<size_t>(n * 8))), ids}); };
    Node last;
    last.ints["axis"] = -1;
    int sum = b.node(op, {rows(3), rows(5)}, last);
    b.output(layer_norm(b, r, sum, op[0] == 'A' ? 8 : 16));
    CHECK(compiles(b.graph));
  }
}

// Positions that are picked without a result, or by an index that an Expand makes of nothing.
void positions_of_nothing() {
  for (const char* without : {"GatherElements", "Expand"}) {
    Disentangled m(Relatively(), 1, 5);
    m.b.output(m.layer(m.b.input("hidden")));
    for (Node& n : m.b.graph.nodes) {
      if (n.op != without) continue;
      if (n.op == "Expand") n.inputs[0] = -1;
      else n.outputs = {-1};
    }
    CHECK(compiles(m.b.graph));
    for (Node& n : m.b.graph.nodes)
      if (n.op == without) n.outputs.clear();
    CHECK(compiles(m.b.graph));
  }
}

// A normalisation that reads nothing.
void norm_of_nothing() {
  for (const char* op : {"LayerNormalization", "RMSNormalization"}) {
    Builder b;
    Numbers r(1);
    const int gamma = b.constant({8}, r.normals(8));
    b.output(b.node(op, {-1, gamma, gamma}));
    CHECK(compiles(b.graph));
  }
}

}  // namespace

int main() {
  norm_of_nothing();
  positions_of_nothing();
  tables_of_different_length();
  centred_without_result();
  rows_of_endless_width();
  return check::report("hostile");
}
