// A compiled part: steps over buffers, ready to run. Knows no graph and no ONNX Runtime.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../kernels/kernels.h"
#include "../kernels/pack_sparse.h"
#include "row_program.h"
#include "tail.h"
#include "traffic.h"

namespace obert {

// Features of a buffer, as one tensor among others that share it.
struct Slice {
  int buffer = -1;
  int column = 0;
  int width = 0;
  bool used() const { return buffer >= 0; }
};

struct Buffer {
  int width = 0;
  bool quantized = false;
  bool picked = false;       // of one token of each sequence
  size_t offset = 0;         // bytes per panel of tokens, in the arena
  size_t bytes = 0;          // per panel
};

enum class StepKind : uint8_t { kImport, kRows, kProduct, kPointwise, kWeighTokens, kLayerNorm, kRotary, kAttention, kDequantize, kPick, kExport };

// Rows of tables, by the indices of an input of the part.
struct Gathered {
  int tensor = -1;
  int rows = -1;                          // place in Program::rows
};

// A tensor that is added to scores, or booleans that say what is.
struct AddedMask {
  int tensor = -1;                        // as Step::tensor; -1: none
  float if_true = 0.f, if_false = 0.f;    // of booleans

  bool used() const { return tensor >= 0; }
};

// A term of relative positions, see RelativeTerm.
struct PositionTerm {
  int table = -1;                         // place in Program::tables, -1: there is no such term
  int index = -1;                         // as Step::tensor, from kConstants on a place in Program::indices
  Rounding rounding;
  float factor = 1.f;
  // Of the index, one for every head of every sequence: how many it is meant for, 0: any; whether it has them all.
  int64_t copies = 0;
  bool spread = false;

  bool used() const { return table >= 0; }
};

// One kernel, or a run of them, over all tokens, or over one of each sequence.
struct Step {
  StepKind kind = StepKind::kImport;
  Slice x;                                // what it reads
  Slice residual, factor;                 // kProduct, kPointwise; residual also kLayerNorm; factor also kWeighTokens: one row
  Slice out, quantized;                   // what it writes: float, uint8, or both
  int tensor = -1;                        // kImport: input of the part, from kConstants on a place in Program::constants;
                                          // kExport: output of the part
  bool by_position = false;               // kImport: a row for each place in a sequence, for all sequences or for each
  std::vector<Gathered> gathered;         // kRows: what is summed, from the first on
  bool flip_sign = false;                 // kImport, kExport: int8 outside, uint8 with 128 added inside
  Activation activation = Activation::kNone;
  float inverse_scale = 1.f;              // of `quantized`; kDequantize: the scale itself
  int zero_point = 0;
  int product = -1;                       // kProduct: place in Program::products
  std::vector<float> gamma, beta;         // kLayerNorm; kPointwise: gamma is Epilogue's scale; it and kProduct: beta is its shift
  float epsilon = 0.f;
  bool centred = true;                    // kLayerNorm
  Slice key, value;                       // kAttention; x is the queries
  Slice cosine, sine;                     // kRotary
  int head_dim = 0;                       // kAttention, kRotary; kLayerNorm: of each head by itself, 0: of all features
  float scale = 1.f;
  AddedMask masks[2];                     // kAttention
  PositionTerm by_query, by_key;          // kAttention; the index of `by_key` is [.., key, query]
  bool nan_to_zero = false;               // kAttention
  Rounding of_x, of_key, of_value;        // kAttention: what codes of them stand for
  Rounding scores, probabilities;         // kAttention
  // kProduct, kPointwise: see Epilogue; kLayerNorm: out_rounding is that of `quantized`
  Rounding rounding, shift_rounding, out_rounding;
  bool picked = false;                    // what it writes has one token of each sequence
  int64_t token = 0;                      // kPick, kAttention that is picked: which, from the end where negative

  // The place of `token` in sequences of so many tokens, which have it.
  size_t token_in(size_t length) const { return static_cast<size_t>(token < 0 ? token + static_cast<int64_t>(length) : token); }
};

// A packed matrix with what its epilogue needs.
struct Product {
  bool quantized = false;                 // int8 by uint8, otherwise float by float
  int rows = 0;
  SparseInt8Storage int8;
  SparseFloatStorage real;
  std::vector<float> scale, bias;         // [rows]; scale is empty for float
};

constexpr int kConstants = 1 << 20;

// A constant mask, or rows by position.
struct ConstantTensor {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

// The columns that constants name, [query, key] or [key, query].
struct ConstantIndex {
  std::vector<int64_t> shape;
  std::vector<int64_t> data;
};

// A table of relative positions for every head, [heads][head_size], as RelativeTerm reads it.
struct PositionTable {
  int positions = 0;
  size_t head_size = 0;   // floats
  std::vector<float> data;

  const float* head(size_t h) const { return data.data() + h * head_size; }
};

// A tensor that the part hands out, [batch, sequence, width], joined, [batch * sequence, width], or, picked, [batch, width].
struct Output {
  int width = 0;
  bool picked = false;
  bool joined = false;
};

struct Program {
  std::vector<Step> steps;
  std::vector<Product> products;
  std::vector<RowProgram> rows;
  std::vector<ConstantTensor> constants;
  std::vector<ConstantIndex> indices;
  std::vector<PositionTable> tables;
  std::vector<Buffer> buffers;
  std::vector<Output> outputs;
  size_t arena_bytes = 0;                 // per panel of tokens
  int sequence_rank = 0;                  // 3 when a step needs [batch, sequence, width], otherwise 0
  const Kernels* kernels = nullptr;
  Traffic traffic;                        // Executor counts it,
  Tail tail;                              // finds this,
  bool drops_padding = false;             // and this
  bool integer_attention = false;         // see Attention::integers
};

// A tensor of ONNX Runtime: row-major, on the CPU.
struct Tensor {
  Type type = Type::kFloat;
  const void* data = nullptr;
  std::vector<int64_t> shape;
};

// What a run needs from outside.
class Caller {
 public:
  virtual ~Caller() = default;
  virtual Tensor input(int index) = 0;
  virtual void* output(int index, const std::vector<int64_t>& shape) = 0;
  // task(context, i) for i in 0 .. count, on as many threads as there are.
  virtual void parallel(size_t count, void (*task)(void*, size_t), void* context) = 0;
};

class Arenas;
struct Run;
struct Sequences;

// Runs a program. Safe to call from several threads at once.
class Executor {
 public:
  Executor(Program program, int threads);
  ~Executor();
  // Throws std::runtime_error where the inputs do not fit together.
  void run(Caller& caller) const;
  const Program& program() const { return program_; }

 private:
  // Groups of sequences, each done by one thread, but for the tail, which all take together.
  void run_groups(const Run& run, Caller& caller, const std::vector<Sequences>& groups) const;
  // The whole batch, every step shared between the threads.
  void run_together(const Run& run, Caller& caller) const;
  // The steps from `first` on, by all threads.
  void run_shared(const Run& run, Caller& caller, const Sequences& all, size_t first) const;

  Program program_;
  int threads_;
  std::unique_ptr<Arenas> arenas_;
};

}  // namespace obert
