// Every kernel of the engine, as one table of functions per instruction set.
//
// The table of `portable` is the oracle: plain C++, one loop per formula. Other tables compute the
// same integers bit for bit, and the same floats within the bounds that tests/ states.
#pragma once
#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace obert {

// A weight matrix [rows][4 * blocks] of int8 as tiles of kTileRows rows by kTileBlocks blocks: chunk by
// chunk along the inputs, strip of rows by strip inside a chunk, and along the inputs inside a strip.
// Tiles of zeros are left out; a tile may appear more than once, its values add up. Zeros fill what lies
// beyond the last row and block.
//
// In the stream a tile is a mask of each row, bit b for block b, and its kept blocks, row by row:
// uint16 [kTileRows] and int8 [kept][kBlock]. A tile whose place has kWholeTile begins at the next
// multiple of 64 bytes and keeps all its blocks, without masks.
struct TilesInt8 {
  int rows = 0, blocks = 0;
  int chunks = 0;
  int chunk_tiles = 0;                // tiles of inputs in a chunk, the last may have fewer
  const uint32_t* start = nullptr;    // [chunks * strips + 1]: first tile of each strip
  const uint32_t* offset = nullptr;   // [chunks * strips]: its dword in the stream
  const uint16_t* place = nullptr;    // [tiles]: counted from the first tile of the chunk; kWholeTile
  const uint32_t* stream = nullptr;   // on a multiple of 64 bytes
};
constexpr int kTileRows = 16, kTileBlocks = 16, kTileDwords = kTileRows * kTileBlocks;
constexpr uint16_t kWholeTile = 0x8000;

// A weight matrix [rows][4 * blocks] of int8 as kept 4-blocks, in the order the kernels walk it:
// chunk by chunk along the inputs (a chunk of a panel stays in the first-level cache), row by row
// inside a chunk. Block b of chunk c, place p lies at start[c * rows + p] <= b < start[c * rows + p + 1].
// A block may appear more than once in a row: its values add up. `index` counts from the first
// input of the chunk. Place p holds row p, or with `order` row p / kRowWindow * kRowWindow + order[c * rows + p]:
// rows of a window are in the order of their number of couples (below), then of blocks, so that a processor foresees
// the end of most.
//
// For a table whose packing says `saturates` every block satisfies, for both pairs (w0, w1) and
// (w2, w3): the positive values add up to at most 128 and the negative ones to at least -128.
// 255 * 128 < 2^15, so that vpmaddubsw, which adds the pair in int16, cannot saturate whatever the
// activations are. Other tables need fewer blocks.
//
// The first 2 * row_blocks[c * rows + p].couples blocks of a row's chunk are couples that keep this rule together,
// the first with the second, the third with the fourth and so on: they may be added in int16.
//
// Or, for a table that asked for them, `tiles` alone, which `portable` and that table multiply.
constexpr int kRowWindow = 64;
constexpr int kChunkBlocks = 256;     // a chunk has no more
struct RowBlocks {
  uint16_t couples = 0, singles = 0;   // two blocks each, and what has no partner
};
struct SparseInt8 {
  int rows = 0;
  int chunks = 0;
  int chunk_blocks = 0;               // blocks of inputs in a chunk, the last may have fewer
  const uint32_t* start = nullptr;    // [chunks * rows + 1]
  const uint8_t* index = nullptr;     // [start[chunks * rows]]: bytes, because weights are read over and over from far away
  const int8_t* value = nullptr;      // [start[chunks * rows]][4]
  const RowBlocks* row_blocks = nullptr;   // [chunks * rows] or null: no couples
  const uint8_t* order = nullptr;     // [chunks * rows] or null, see above
  const uint8_t* whole = nullptr;     // [chunks * rows] or null, by place: 1 where all blocks of the chunk are there, once, in
                                      // their order, be they zeros or not
  TilesInt8 tiles;                    // used instead of all above where tiles.start is not null
};

// How a table likes its matrices packed. A table that saturates, and one of tiles, read their own packing
// alone; the others compute the same from every packing but tiles.
struct Packing {
  int dense_chunk = 96;               // blocks of a chunk, at most: where many are kept
  int sparse_chunk = 96;              // where few are
  int float_chunk = 96;               // inputs of a chunk of float32, at most
  double sparse_below = .4;           // few: a smaller share of the weights than this
  bool saturates = false;             // pairs of a block keep the rule above, and couples are formed; wants `fill` too
  bool tiles = false;                 // instead of all this, where they pay
  bool whole = false;                 // rows that keep most blocks of a chunk are stored with all of them
  int fill = 0;                       // rows are ordered, and blocks of zeros fill them up to a multiple of this; 0: neither
};

// The same in float32, one input per entry instead of four: unstructured or blocked zeros alike. Rows are not filled up.
struct SparseFloat {
  int rows = 0;
  int chunks = 0;
  int chunk_inputs = 0;
  const uint32_t* start = nullptr;
  const uint8_t* index = nullptr;
  const float* value = nullptr;
  const uint8_t* order = nullptr;
};

// kGeluSigmoid: x * sigmoid(1.702 x).
enum class Activation : uint8_t { kNone, kRelu, kGeluErf, kGeluTanh, kGeluSigmoid, kSilu, kTanh };

// What quantising and dequantising makes of a float: (q - zero_point) * scale with
// q = clamp(round_half_even(x / scale) + zero_point, 0, 255). Nothing where scale is 0.
struct Rounding {
  float scale = 0.f;
  int zero_point = 0;
};

// What becomes of an accumulated row:
//   y = out_rounding(act(shift_rounding(rounding(acc * scale[row] + bias[row]) + shift[row])) (+ residual) (* factor)),
// stored as float and/or as uint8 = clamp(round_half_even(y * inverse_scale) + zero_point, 0, 255).
struct Epilogue {
  const float* scale = nullptr;       // [rows], null: 1 (float accumulators)
  const float* bias = nullptr;        // [rows], null: 0
  Rounding rounding;
  const float* shift = nullptr;       // [rows], null: 0
  Rounding shift_rounding;
  Activation activation = Activation::kNone;
  const float* residual = nullptr;    // panel [rows][kPanel] or null, added after the activation
  const float* factor = nullptr;      // panel [rows][kPanel] or null, multiplied after the activation (gates)
  float* out = nullptr;               // panel [rows][kPanel] or null
  Rounding out_rounding;
  uint8_t* quantized = nullptr;       // panel [rows / 4][kPanel][4] or null
  float inverse_scale = 1.f;
  int zero_point = 0;
};

// y = (x - mean) / sqrt(variance + epsilon) * gamma + beta over the features of each token, where
// x is the sum of one or two panels.
// With `centred` false the mean counts as 0, of the variance too: RMSNorm (Zhang and Sennrich 2019, equation 4).
struct LayerNorm {
  int features = 0;
  const float* gamma = nullptr;       // [features]
  const float* beta = nullptr;        // [features] or null
  float epsilon = 0;
  bool centred = true;
  const float* x = nullptr;           // panel
  const float* residual = nullptr;    // panel or null
  float* out = nullptr;               // panel or null
  uint8_t* quantized = nullptr;       // panel or null
  float inverse_scale = 1.f;
  int zero_point = 0;
  float out_scale = 0.f;              // above 0: `out` is what `quantized` stands for, (code - zero_point) * out_scale
};

// Rotary position embedding of every head of some features of a panel (Su et al. 2021, RoFormer, equation 34, with the
// halves of a head in the place of neighbours): with h = head_dim / 2 and d < h
//   out[d]     = x[d] cosine[d] - x[d + h] sine[d]
//   out[d + h] = x[d + h] cosine[d + h] + x[d] sine[d + h]
struct Rotary {
  int features = 0, head_dim = 0;     // head_dim is even and divides features
  const float* x = nullptr;           // panel [features][kPanel]
  const float *cosine = nullptr, *sine = nullptr;   // panels [head_dim][kPanel]: of each token's position. Or
  bool halves = false;                // [head_dim / 2][kPanel]: the same for both halves
  float* out = nullptr;               // panel [features][kPanel]
};

// Scaled dot-product attention of one head over one sequence: for each query token
//   p = probabilities(softmax_k(scores(scale * q . k) + mask[., k])),  y = sum_k p_k v_k
// with the roundings `scores` and `probabilities`.
// Keys and values are tokens first .. first + length of their buffers, queries are tokens
// first_query .. first_query + queries of theirs and of the results, wherever panel borders fall. Buffers
// are panels, float but for `quantized`, that lie `width` features apart; the head is features column ..
// column + head_dim of each.
//
// Queries, keys and values may lie there as the 8-bit codes they were rounded to, in panels of bytes: then `of_q`, `of_k`
// and `of_v` say what the codes stand for, and scores are sums of whole numbers, exact, as averages of values are where the
// graph rounds probabilities. Everything else is float32. NaN and infinities give what they give in floats.
struct Attention {
  int head_dim = 0;
  int length = 0;                     // keys: tokens of the sequence
  size_t first = 0;                   // index of the first key
  int queries = 0;                    // of the sequence, in all calls together
  size_t first_query = 0;
  const float *q = nullptr, *k = nullptr, *v = nullptr;   // buffers: [panels][width][kPanel]
  // In the place of all three: [panels][width / 4][kPanel][4]. Widths, columns and head_dim are multiples of 4
  // then, and a call has no more queries than there are keys, or kPanel.
  const uint8_t *q_codes = nullptr, *k_codes = nullptr, *v_codes = nullptr;
  int q_width = 0, k_width = 0, v_width = 0;
  int q_column = 0, k_column = 0, v_column = 0;
  float scale = 1.f;
  const float* mask = nullptr;        // added to the scores, or null
  Rounding of_q, of_k, of_v;          // what the codes stand for
  Rounding scores, probabilities;
  bool nan_to_zero = false;           // p is 0 where softmax gives NaN
  // With codes: probabilities of 16 bits, at twice the rate of floats, where that suits the table; attention_codes.h bounds
  // the error, which moves about one code in a thousand of a quantised result by a step.
  bool integers = false;
  size_t mask_stride = 0;             // floats from one query's row of the mask to the next; 0: one row for all
  int query_begin = 0, query_end = 0; // queries of this call, within 0 .. queries; query_begin % kGroup == 0
  float* out = nullptr;               // buffer [panels][out_width][kPanel] or null
  uint8_t* quantized = nullptr;       // buffer [panels][quantized_width / 4][kPanel][4] or null
  int out_width = 0, quantized_width = 0;
  int out_column = 0;                 // of both; a multiple of 4, as head_dim, when quantized
  float inverse_scale = 1.f;
  int zero_point = 0;
  void* scratch = nullptr;            // attention_scratch(length, head_dim) bytes, 64-byte aligned
};

// One of the terms that relative positions add to the scores of a head.
struct RelativeTerm {
  // A column for each position: [columns / kTableColumns, rounded up][head_dim][kTableColumns]; null: there is no such term.
  const float* table = nullptr;
  const int32_t* index = nullptr;     // column for each two tokens: a row of index_stride for each query, or each key
  size_t index_stride = 0;
  Rounding rounding;                  // of the product, before `factor`
  float factor = 1.f;
};
constexpr int kTableColumns = 32;

// What relative positions add to the scores of one head over one sequence (He et al. 2021, DeBERTa, equation 4): for query
// i and key j
//   out[i][j] = mask[i][j] + by_query.factor * by_query.rounding(q_i . by_query.table[index[i][j]]) + the same of keys: k_j, index[j][i]
// Queries and keys lie as for Attention, whose mask the result is.
struct RelativeScores {
  int head_dim = 0;
  int length = 0;
  size_t first = 0, first_query = 0;
  const float *q = nullptr, *k = nullptr;
  int q_width = 0, k_width = 0;
  int q_column = 0, k_column = 0;
  RelativeTerm by_query, by_key;
  const float* mask = nullptr;
  size_t mask_stride = 0;
  int query_begin = 0, query_end = 0;
  float* out = nullptr;               // [query_end - query_begin][length]
  void* scratch = nullptr;            // relative_scratch(columns of the wider table, head_dim) bytes, 64-byte aligned
};

// One step of an expression over the rows of gathered tables. Operands and results lie in working memory; an
// operand `b` of fewer elements than `a` is repeated in runs.
enum class RowOp : uint8_t { kGather, kConstant, kAdd, kSubtract, kMultiply, kDivide, kFloor, kConcat };
enum class Element : uint8_t { kFloat, kHalf, kInt8, kUInt8 };
struct RowStep {
  RowOp op = RowOp::kGather;
  Element element = Element::kFloat;  // kGather: of the table
  const void* table = nullptr;        // kGather: [rows][width]
  float constant = 0.f;               // kConstant
  int width = 0, width_a = 0, width_b = 0;
  size_t a = 0, b = 0, out = 0;       // floats from the beginning of the working memory
};

struct Kernels {
  const char* name;                   // the instruction set, as OBERT_FORCE_ISA calls it
  Packing packing;                    // for pack_sparse.h

  // acc[r - row_begin][kPanel] = sum over the row's blocks of value . x, for the rows row_begin .. row_end and
  // groups * kGroup tokens of one uint8 panel `x`. Both are multiples of 4 (of kRowWindow where rows are ordered), or
  // row_end is the end of the matrix.
  void (*multiply_int8)(const SparseInt8& w, const uint8_t* x, int groups, int row_begin, int row_end, int32_t* acc);
  // The same for float32 with a float panel.
  void (*multiply_float)(const SparseFloat& w, const float* x, int groups, int row_begin, int row_end, float* acc);
  // Finish rows row_begin .. row_end of one panel. `acc` is [row_end - row_begin][kPanel].
  // When quantized is asked for, rows up to the next multiple of 4 beyond the last row of the
  // matrix are filled with zero_point.
  void (*finish_int8)(const Epilogue& e, const int32_t* acc, int groups, int row_begin, int row_end);
  void (*finish_float)(const Epilogue& e, const float* acc, int groups, int row_begin, int row_end);
  void (*layer_norm)(const LayerNorm& n, int groups);
  void (*rotate)(const Rotary& r, int groups);
  void (*attention)(const Attention& a);
  size_t (*attention_scratch)(int length, int head_dim);
  void (*relative_scores)(const RelativeScores& r);
  size_t (*relative_scratch)(int positions, int head_dim);
  // Row-major tokens [tokens][features] (row stride in elements) into and out of one panel.
  void (*import_float)(const float* rows, size_t stride, int tokens, int features, float* panel);
  void (*import_uint8)(const uint8_t* rows, size_t stride, int tokens, int features, uint8_t zero_point, uint8_t* panel);
  void (*export_float)(const float* panel, int tokens, int features, float* rows, size_t stride);
  void (*export_uint8)(const uint8_t* panel, int tokens, int features, uint8_t* rows, size_t stride);
  // The result of the last of `count` > 0 steps for row `index` of the tables into out[width], or added to it.
  void (*gather_row)(const RowStep* steps, int count, size_t index, float* scratch, float* out, bool add);
};

// Instruction sets this library was built with and this processor has, best first; `portable` is
// always the last. OBERT_FORCE_ISA, a name, leaves only that one.
struct KernelSet {
  const Kernels* const* tables;
  size_t count;
};
KernelSet available_kernels();
// The table called `name`, null where the library or the processor lacks it.
const Kernels* find_kernels(const char* name);

}  // namespace obert
