// One pass over the nodes of a graph. Its members lie in files by subject: match.cc (tensors, nodes),
// match_quantization.cc, match_products.cc, match_pointwise.cc, match_picks.cc, match_columns.cc, match_rotary.cc,
// match_relative.cc, match_attention.cc.
#pragma once
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "constants.h"
#include "matcher.h"
#include "patterns.h"
#include "shape_values.h"

namespace obert {

// `barred` nodes are left alone whatever they look like.
class Matcher {
 public:
  Matcher(const Graph& graph, const std::vector<char>& barred, const Reshapes& known, Densities& densities)
      : g_(graph), barred_(barred), known_(known), densities_(densities) {
    m_.views.resize(g_.values.size());
    m_.claimed.assign(g_.nodes.size(), 0);
    imports_.assign(g_.values.size(), -1);
    row_of_.assign(g_.values.size(), -1);
    arithmetic_.assign(g_.nodes.size(), 0);
    unpacks_.assign(g_.nodes.size(), 0);
    factor_of_.assign(g_.nodes.size(), -1);
  }

  Match run();

 private:
  const Node& node(int n) const { return g_.nodes[n]; }
  int in(int n, size_t i) const { return g_.input(n, i); }
  int out(int n) const { return node(n).outputs.empty() ? -1 : node(n).outputs[0]; }
  bool fail(const char* why) {
    reason_ = why;
    return false;
  }
  View view(int value) const { return value >= 0 ? m_.views[value] : View{}; }
  int rank_of(int value) const { return value >= 0 ? g_.values[value].rank : -1; }
  // Whether nothing that `n` reads beside `value` has more dimensions than it.
  bool keeps_rank(int n, int value) const { return rank_of(out(n)) < 0 || rank_of(value) < 0 || rank_of(out(n)) == rank_of(value); }
  bool plain_float(int value) const {
    View v = view(value);
    return v.plain() && v.form == Form::kFloat;
  }
  bool show(int n, const View& v) {
    int value = out(n);
    if (value < 0) return false;
    m_.views[value] = v;
    return true;
  }
  // What comes of `from`, token by token.
  bool show(int n, int op, int from) {
    View v;
    v.op = op;
    v.form = m_.ops[op].quantized ? Form::kQuantized : Form::kFloat;
    const bool matrix = view(from).held() ? view(from).layout == Layout::kMatrix : rank_of(from) == 2;
    v.layout = m_.ops[op].picked ? Layout::kPicked : matrix ? Layout::kMatrix : Layout::kTokens;
    return show(n, v);
  }
  int add(Op op);
  // Whether two tensors have the same tokens.
  bool same_tokens(int a, int b) const { return m_.ops[a].picked == m_.ops[b].picked && m_.ops[a].other_shape == m_.ops[b].other_shape; }
  // Whether `b` stands there once for all sequences, [sequence, width], beside the tokens of `a`.
  bool is_spread(const View& a, int b) const {
    return a.layout == Layout::kTokens && !m_.ops[a.op].other_shape && m_.ops[b].kind == OpKind::kImport && rank_of(m_.ops[b].value) == 2;
  }
  // A value from outside as a token tensor of `width` features.
  int import(int value, int width, const Quantization* q = nullptr);
  // The float tensor that `value` shows: held, dequantised for it, or imported.
  int tensor(int value, int width);
  // Makes a tensor of rows that were gathered and unpacked; 0: of any width.
  bool gathered(int value, int width);
  bool row(int n);
  int dequantized(int quantized);
  bool absorb(int n);
  bool pass(int n);

  // quantisation
  bool quantize(int n);
  // Whether its numbers, but for a factor, are those of its op, and not yet to be computed of them.
  static bool shows_its_op(const View& v) {
    return v.layout != Layout::kTimesCosine && v.layout != Layout::kTurnedTimesSine && v.layout != Layout::kPositions &&
           v.layout != Layout::kRelative && v.layout != Layout::kNotANumber;
  }
  // The same but for the rounding of a scale that was divided by a factor.
  static bool alike(const Quantization& a, const Quantization& b);
  // Scores, products with positions and probabilities stay in float, and are rounded where the graph quantises them.
  static bool is_rounded(Layout layout) {
    return layout == Layout::kScores || layout == Layout::kProbabilities || layout == Layout::kPositions;
  }
  bool round(int n, View v, Quantization q);
  bool unround(int n, View v);
  View quantized_view(View v, const Quantization& q);
  bool dequantize(int n);
  // A quantised tensor of tokens from outside.
  View quantized_import(int n);

  // products
  bool product(int n);
  // The quantised op that a product with an int8 matrix reads, or -1.
  int quantized_input(int value, int inputs);
  bool linear(int n);
  void chain_of_bias(int value, std::vector<int>& chain) const;

  // sums, factors, activations, normalisations
  bool sum(int n);
  bool masked(int n, View v, int mask);
  bool add_bias(int n, int op, const std::vector<float>& bias, int value, int from);
  bool scaled(int n);
  // Each feature times a constant, or all times one.
  bool scale_features(int n, int x, int by);
  // Whether a value holds one number for each token of `x`.
  bool weighs_tokens(int x, int weights) const;
  // A scalar that is constant, or computed of the shape of a tensor as 1 / sqrt(head_dim) is.
  std::optional<float> factor(int value, int depth = 0) const;
  bool activate_as(int n, int x, Activation activation);
  bool activate(int n);
  // The one node that reads `value`, -1 where there is none, or another, or a graph output.
  int only_consumer(int value) const {
    if (value < 0 || g_.values[value].is_output || g_.values[value].consumers.size() != 1) return -1;
    return g_.values[value].consumers[0];
  }
  int other_input(int n, int value) const { return in(n, 0) == value ? in(n, 1) : in(n, 0); }
  bool is(int n, const char* op) const { return n >= 0 && !barred_[n] && node(n).op == op; }
  bool near(int value, float x) const {
    auto s = scalar(g_, value);
    return s && std::fabs(*s - x) < 1e-4f * std::fabs(x);
  }
  bool covers(const Pattern& p) const;
  bool activation_of(const std::optional<Pattern>& p, Activation activation);
  bool layer_norm_of(const std::optional<Pattern>& p);
  // Whether an axis is the last of a tensor of tokens or heads.
  bool over_last(int64_t axis, int value) const {
    const View v = view(value);
    const bool matrix = v.held() ? v.layout == Layout::kMatrix : rank_of(value) == 2;
    return axis == -1 || axis == (v.held() && whole_heads(v) ? 3 : matrix ? 1 : 2);
  }
  // All features of a token, or those of each of its heads, by an op whose width is that of gamma.
  bool normalised(int n, int value, Op op);
  bool layer_norm(int n);
  // A DequantizeLinear whose constant was read goes with its reader, where nothing else reads it.
  void claim_constant_chain(int value);

  // Features of a product, or one of the parts that it stacks: by Slice, Split, or Gather.
  bool cut(int n);
  // Where a Slice begins or ends: constant, or computed of the shape of a tensor.
  std::optional<int64_t> bound(int value) const;
  bool split(int n);
  bool squeeze(int n);
  // What lies at begin .. end along an axis of `size`, which may be negative as ONNX counts; not held where it is none of these.
  View part(const View& v, int64_t axis, int64_t begin, int64_t end);
  // The elements along an axis that can be cut, 0 for others.
  int64_t extent(const View& v, int64_t axis) const;
  // Some features of what comes of a product as the results of a product of their own, or -1.
  int columns(int op, int begin, int width, int depth = 0);

  // Rotary position embeddings.
  // Heads that a Slice or Split has cut, or that are about to be cut, and what is made of their halves.
  static bool cut_heads(const View& v) { return v.layout >= Layout::kStackedHeads && v.layout <= Layout::kTurnedTimesSine; }
  static bool whole_heads(const View& v) { return v.layout == Layout::kHeads || v.layout == Layout::kSequenceHeads; }
  static bool same_heads(const View& a, const View& b) {
    return a.op == b.op && a.form == b.form && a.head_dim == b.head_dim && a.heads == b.heads && a.factor == b.factor && a.group == b.group;
  }
  bool negate(int n);
  bool turn(int n);
  // Heads, turned or not, times cosines or sines.
  bool times_table(int n, View v, int table);
  bool rotate(int n, const View& a, const View& b);
  bool rotary_embedding(int n);
  bool rotated(int n, const View& x, int cosine, int sine);
  // The value that holds a row of `width` for each position and broadcasts as `value` does over heads in that layout,
  // -1 where it cannot be told. Takes an Unsqueeze in, so that layers share what they unsqueeze anew.
  int position_table(int value, Layout heads, int width);
  int by_position(int table, int width);

  // One token of each sequence, by Gather, or by Slice or Gather and Squeeze.
  bool pick(int n);

  // attention
  // Shape of a tensor that is held, as far as it is known without a call.
  std::optional<std::vector<Dim>> shape_of(const View& v) const;
  std::optional<std::vector<Dim>> shape_of(int value) const { return shape_of(view(value)); }
  // Whether a Reshape to `target` may make `wanted` of its input: each dimension is what is wanted,
  // or copies it from the same place (0), or is the one that is left open (-1).
  static bool reaches(const std::vector<Dim>& target, const std::vector<Dim>& wanted);
  bool reshape(int n);
  // Batch and heads join in front when that is the open dimension, or unknown, or a multiple of the heads.
  static bool joins(const Dim& front, int heads) {
    return front.kind == Dim::kUnknown || front.is(-1) || (front.kind == Dim::kNumber && front.number > 0 && front.number % heads == 0);
  }
  bool transpose(int n);
  // The float op behind heads, dequantised where the graph quantises queries, keys or values.
  int float_heads(const View& v) { return v.form == Form::kDequantized ? dequantized(v.op) : v.op; }
  // Heads that several heads of queries share (Ainslie et al. 2023, grouped-query attention): a dimension for their copies,
  // and the copies.
  bool unsqueeze(int n);
  bool expand(int n);
  // Whether keys or values, with the copies that stand in for them, have a head for each of the queries.
  bool share(const View& q, const View& other) const;
  bool scores(int n, const View& q, const View& k);
  // Where(condition, x, y): what is masked, a row without any key, or a probability that is NaN.
  bool choose(int n);
  // Scores that become a number far below all others where the condition says so.
  bool fill(int n, View v, float number, bool if_true);
  // Probabilities that are 0 where the scores were masked.
  bool clear(int n, View v, bool if_true);
  // Where(IsNaN(p), 0, p): rows without any key.
  bool is_nan(int n);
  bool nan_to_zero(int n);
  bool softmax(int n);
  // Attention, whole, as opset 23 has it.
  bool attention(int n);

  // Relative positions in scores.
  // Heads times a table of positions.
  bool positions(int n, View x);
  // The constant table behind `value`, with the nodes through which it is read; that is -1 where there is none.
  Relative table_of_positions(const View& x, int value, std::vector<int>& chain);
  // Whether a Tile repeats a tensor of that rank over its first axis alone.
  bool repeats_batch(int n, size_t rank);
  bool pick_positions(int n);
  // What an Expand to `shape`, which it takes in, reads; the value itself where there is none. How many copies it makes
  // for all but the last two dimensions, 0 where that is not known, -1 where it makes none, is in `copies`.
  int before_spread(int value, const std::vector<Dim>& shape, int64_t* copies = nullptr);
  // Whether an index has the same positions for every sequence and head; counts the copies of a constant where that is -1.
  bool one_for_all(int index, size_t rank, int64_t& copies);
  // Whether an Expand outside of the part gives every head the same.
  bool spread_outside(int value) const;
  // Queries and keys change places.
  static void turn_relative(View& v);
  bool add_relative(int n, const View& a, const View& b);

  // A value that may be added to scores, or says which count; `why` it may not.
  bool may_mask(int value, bool booleans, const char*& why) const;
  bool context(int n, const View& p, const View& value);
  // Shape, Gather, Concat and their like whose results only claimed nodes read: left outside they
  // would make the engine hand out hidden states for the sake of their shape.
  void claim_shape_arithmetic();
  // Whether a claimed node reads `value` only as a shape, or as a factor that was computed of one.
  bool feeds_shape(int consumer, int value) const;

  const Graph& g_;
  const std::vector<char>& barred_;
  const Reshapes& known_;
  Densities& densities_;
  Match m_;
  std::vector<int> imports_;   // by value: the op that imports it
  std::vector<int> row_of_;    // by value: its term among the rows
  std::vector<char> arithmetic_;   // by node: claimed because it computes shapes for claimed nodes
  std::vector<char> unpacks_;      // by node: of the chain of a packed matrix
  std::vector<int> factor_of_;     // by node: the value by which it scales heads or scores, -1: none
  std::string reason_;
};

}  // namespace obert
