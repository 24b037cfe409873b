// What one run works on: its inputs, checked against each other and against the program, and its outputs.
#pragma once
#include <array>
#include <map>
#include <tuple>
#include <vector>

#include "program.h"

namespace obert {

struct Mask {
  const float* data = nullptr;
  size_t batch = 0, head = 0, query = 0;   // strides in floats, 0 where one serves all
};

// Rows for each place in a sequence.
struct Places {
  const float* data = nullptr;
  size_t sequence = 0;   // rows from one sequence to the next, 0 where one serves all
};

// A column for each query and key, or each key and query, [length][stride].
struct PairIndex {
  const int32_t* data = nullptr;
  size_t stride = 0;
};

// What all groups of one run share.
struct Run {
  std::vector<Tensor> inputs;
  std::vector<char> read;
  std::vector<float*> outputs;
  std::vector<std::array<Mask, 2>> masks;   // by step
  std::vector<std::vector<float>> spread;   // by step: inputs repeated over the batch
  std::vector<Places> places;               // by step: imports by position
  std::vector<std::array<PairIndex, 2>> pairs;   // by step: attention with terms of queries, of keys
  // What masks of booleans add to scores, by input and what they say.
  std::map<std::tuple<int, float, float>, std::vector<float>> added;
  // Columns, by input and how many there are to name.
  std::map<std::pair<int, int>, std::vector<int32_t>> columns;
  std::vector<int64_t> leading;          // shape of the tokens
  size_t batch = 1, length = 0;
  // Where padding is dropped (see padding.h): the sequences, longest first, and how many tokens of each count.
  std::vector<size_t> order, kept;

  size_t sequence(size_t i) const { return order.empty() ? i : order[i]; }
  // Of the longest from the i-th on.
  size_t tokens_from(size_t i) const { return kept.empty() ? length : kept[i]; }
};

// What a mask of booleans adds to scores.
std::vector<float> added(const uint8_t* mask, size_t count, float if_true, float if_false);

// Throws std::runtime_error where the inputs do not fit together.
Run prepare(const Program& program, Caller& caller);

}  // namespace obert
