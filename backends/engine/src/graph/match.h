// Finds the part of a graph that the engine computes.
//
// Every value that the engine can hold is a View of the result of an op: as tokens, as heads in one
// of three orders, as scores or probabilities of an attention in the making; quantised, dequantised
// or float. Nodes are read in topological order and either turn views into views (and ops) or are
// left alone, with a reason where the node is one that should have matched. What is left alone may
// read only views that can be handed over (tokens, plainly); producers of others are left alone too,
// until all is consistent. What remains falls into parts, each of which becomes one fused node.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "graph.h"
#include "ops.h"
#include "rows.h"

namespace obert {

enum class Layout : uint8_t {
  kTokens,         // [batch, sequence, width]
  kMatrix,         // [batch * sequence, width]
  kSequenceHeads,  // [batch, sequence, heads, head_dim]
  kHeads,          // [batch, heads, sequence, head_dim]
  kHeadsLast,      // [batch, heads, head_dim, sequence]
  kFlatHeads,      // [batch * heads, sequence, head_dim]
  kFlatHeadsLast,  // [batch * heads, head_dim, sequence]
  kScores,         // [batch, heads, query, key], before softmax
  kProbabilities,  // the same, after
  kNotANumber,     // which probabilities are NaN
  kStackedHeads,   // [batch, sequence, parts, heads, head_dim]: queries, keys and values of one product
  kStackedPart,    // [batch, sequence, 1, heads, head_dim]
  // Of heads in the layout `heads` of the view, on the way to a rotary embedding:
  kFirstHalf,      // of the features of each
  kSecondHalf,
  kMinusSecondHalf,
  kTurned,         // [-second half, first half]
  kTimesCosine,    // the heads times `table`
  kTurnedTimesSine,   // what is turned times `table`
  // Of heads that several heads of queries share, on the way to a copy for each:
  kSharedHeads,    // [batch, heads, 1, sequence, head_dim]
  kRepeatedHeads,  // [batch, heads, group, sequence, head_dim]
  kPicked,         // [batch, width], one token of each sequence
  kPositions,      // [batch, heads, sequence, positions]: heads times the table of `by_query`
  kRelative,       // [batch, heads, query, key]: what of these an index picks, of queries, of keys, or the sum of both
};

enum class Form : uint8_t { kFloat, kQuantized, kDequantized };

struct View {
  int op = -1;                     // whose result it shows; -1: the engine does not hold the value
  Layout layout = Layout::kTokens;
  Form form = Form::kFloat;
  int head_dim = 0;
  int parts = 0;                   // of stacked heads
  int group = 1;                   // heads, each of which stands there so many times, one after another
  Layout heads = Layout::kHeads;   // of halves and what is made of them
  int table = -1;                  // value of the graph: cosines or sines
  float factor = 1.f;              // of heads and scores: the numbers are factor times the result
  bool flat = false;               // scores, probabilities, kPositions, kRelative: [batch * heads, .., ..]
  int key = -1;                    // scores: the op of the keys (op is that of the queries); kRelative: the op of the term of keys, and op
                                   // is that of queries where there is one
  ScoreMask masks[2];              // scores
  Relative by_query, by_key;       // scores, kRelative; kPositions: see there
  bool nan_to_zero = false;        // probabilities: 0 where they are NaN
  // Quantised and dequantised on the way; scale 0: not. That of scores counts before `factor`.
  Quantization score_rounding{0.f}, probability_rounding{0.f};

  bool held() const { return op >= 0; }
  // Can be written out as the tensor that the graph has at this place.
  bool plain() const { return held() && of_tokens() && factor == 1.f; }
  bool of_tokens() const { return layout == Layout::kTokens || layout == Layout::kMatrix || layout == Layout::kPicked; }
};

struct Skip {
  int node = -1;
  std::string reason;
};

// What Reshapes make of heads and tokens, and how many blocks of zeros a packed matrix is put among,
// by name of the Reshape's or ScatterND's result. Nodes that may lie outside of the part compute it,
// so a part alone does not show it.
struct Reshaped {
  Layout layout = Layout::kTokens;
  int head_dim = 0, parts = 0;
  bool flat = false;
  int group = 1;
  int64_t blocks = 0;
  int64_t copies = 0;              // see Relative
  bool spread_outside = false;     // an index of positions, by an Expand that is not in the part
};
using Reshapes = std::map<std::string, Reshaped>;

// One part of the graph, or the whole of a graph that consists of nothing else.
struct Match {
  std::vector<Op> ops;
  std::vector<Weights> weights;
  Rows rows;
  std::vector<View> views;         // by value
  std::vector<char> claimed;       // by node
  std::vector<Skip> skips;         // products, softmaxes and normalisations that stay outside, and why
  Reshapes reshapes;
};

// What one fused node consists of: node indices in topological order.
using Part = std::vector<int>;

struct Claims {
  std::vector<Part> parts;
  std::vector<Skip> skips;
  Reshapes reshapes;               // for matching the parts again
  bool wants_folding = false;      // something that is left is computed of constants alone
};

// Parts of `graph` that the engine takes. Each is convex (no path leaves and returns) and matches
// completely when it is all there is.
Claims claim(const Graph& graph);

// The nodes of a part as a graph of their own, with the values of the whole.
Graph part_graph(const Graph& graph, const Part& part);

// Matches a graph that is one part. Nodes that do not match are in `skips`.
Match match(const Graph& graph, const Reshapes& known = {});

}  // namespace obert
