// What the matcher makes of a graph: operations on token tensors, in single-assignment form.
//
// A token tensor has one row of `width` features for each token of a batch [batch, sequence], or for
// each row of a matrix. Heads, transposes and reshapes of it are no operations: they are ways of
// looking at the same numbers (see match.h).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../kernels/kernels.h"
#include "graph.h"

namespace obert {

// x = scale * (q - zero_point) with q in uint8. An int8 tensor is stored with 128 added to both.
struct Quantization {
  float scale = 1.f;
  int zero_point = 0;
  bool is_signed = false;   // int8 in the ONNX graph

  bool same(const Quantization& o) const { return scale == o.scale && zero_point == o.zero_point; }
};

// A matrix as kept blocks of `block` neighbours, counted row by row, and the distance of each from
// the one stored before it (the first one's from the start). All other blocks are zeros.
struct PackedMatrix {
  const Constant* values = nullptr;   // float, int8 or uint8, [stored, block]
  const Constant* gaps = nullptr;     // uint8, or uint4 in pairs whose first is the low half of a byte
  int64_t rows = 0, columns = 0;
  int64_t block = 0, blocks = 0;      // length of a block; how many make up the matrix

  unsigned gap(size_t i) const {
    const uint8_t* bytes = gaps->as<uint8_t>();
    return gaps->type == Type::kUInt8 ? bytes[i] : (bytes[i / 2] >> (i % 2 * 4)) & 15u;
  }
};

// A constant matrix and bias of a product, as the graph stores them.
struct Weights {
  const Constant* matrix = nullptr;   // float, int8 or uint8; null where it is packed
  PackedMatrix packed;                // where `matrix` is null
  bool outputs_first = false;         // stored [outputs, inputs] instead of [inputs, outputs]
  int inputs = 0;
  int outputs = 0;
  std::vector<float> scale;           // [outputs]; empty for float matrices
  std::vector<int> zero_point;        // [outputs], in the matrix's own type; empty: zero
  std::vector<float> bias;            // [outputs] or empty

  Type type() const { return matrix ? matrix->type : packed.values->type; }
};

// A tensor that is added to scores, or booleans that say what is. What stands in the place of scores where a boolean says
// so is among these: -3.4e38 and -inf swallow what they are added to.
struct ScoreMask {
  int value = -1;                     // of the graph
  float if_true = 0.f, if_false = 0.f;

  bool used() const { return value >= 0; }
};

// A term that relative positions add to scores: for each query and key a column of a table, which the index names, times
// the query, or times the key.
struct Relative {
  int table = -1;                     // value of the graph: constant, [heads, positions, head_dim]
  bool positions_last = false;        // it is [heads, head_dim, positions] instead
  std::vector<Quantization> table_roundings;   // what quantises and dequantises the table, one after another
  int index = -1;                     // value of the graph: [.., query, key]; where keys are multiplied, [.., key, query]
  // Of the index, one for every head of every sequence. 0: it comes before it is spread to them, kSpread: after.
  int64_t copies = 0;
  static constexpr int64_t kSpread = -1;
  Quantization rounding{0.f};         // of the product, before `factor`; scale 0: none
  float factor = 1.f;

  bool used() const { return index >= 0; }
};

enum class OpKind : uint8_t {
  kImport,       // a tensor from outside: float, or uint8/int8 when `quantized`
  kRows,         // gathered and unpacked rows of constant tables
  kQuantize,
  kDequantize,
  kLinear,
  kActivate,
  kAdd,
  kScale,        // multiplies each feature by one constant: gamma
  kShift,        // adds one constant to each feature: beta
  kMultiply,
  kWeighTokens,  // multiplies each token by a number of its own, an import by position of one feature
  kLayerNorm,
  kRotary,       // rotary position embedding of heads; reads them, cosines and sines
  kAttention,
  kPick,         // one token of each sequence: a result [batch, width]
};

struct Op {
  OpKind kind = OpKind::kImport;
  std::vector<int> inputs;            // ops whose results it reads
  int width = 0;                      // features of the result
  bool quantized = false;             // the result is uint8
  Quantization quantization;          // of a quantised result
  int value = -1;                     // kImport: the value of the graph; kRows: that of the indices
  bool other_shape = false;            // its tokens are those of a tensor from outside that is not [batch, sequence, features]
  bool by_position = false;           // kImport: one row for each place in a sequence, for all sequences or for each
  int row = -1;                       // kRows: term of Match::rows
  int weights = -1;                   // kLinear: place in Match::weights
  int begin = 0;                      // kLinear: its first output there; `width` of them
  Activation activation = Activation::kNone;   // kActivate
  std::vector<float> gamma, beta;     // kLayerNorm, [width], or [head_dim] of each head; beta may be empty. kScale: gamma; kShift: beta
  float epsilon = 0.f;                // kLayerNorm
  bool centred = true;                // kLayerNorm: see LayerNorm
  int head_dim = 0;                   // kAttention, kRotary; kLayerNorm of each head by itself
  float scale = 1.f;                  // kAttention
  ScoreMask masks[2];                 // kAttention
  Relative by_query, by_key;          // kAttention
  bool nan_to_zero = false;           // kAttention: probabilities that are NaN count as 0
  Quantization score_rounding{0.f};   // kAttention: of q . k before `scale`; scale 0: none
  Quantization probability_rounding{0.f};   // kAttention
  bool picked = false;                // the result has one token of each sequence; inputs then have too, but
                                      // for kPick and the keys and values of kAttention
  int64_t token = 0;                  // kPick, kAttention that is picked: which; from the end where negative
};

}  // namespace obert
