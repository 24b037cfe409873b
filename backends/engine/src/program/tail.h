// The steps at the end of a program that work on one token of each sequence.
//
// A batch of many sequences is run in groups of few, of which each has few such tokens: a vector of 16 lanes for one.
// So groups leave out these steps, carry over what they read, and the tokens of all groups take them together.
#pragma once
#include <cstddef>
#include <vector>

namespace obert {

struct Program;

struct Tail {
  size_t first = 0;          // step; the number of all where there is no tail
  std::vector<int> reads;    // buffers that steps before it write
};
Tail tail_of(const Program& program);

}  // namespace obert
