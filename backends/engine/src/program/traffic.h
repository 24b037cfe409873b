// How much memory the products of a program move, and what follows for the threads that share a run.
#pragma once
#include <cstddef>

namespace obert {

struct Program;

struct Traffic {
  size_t weights = 0;       // bytes of all matrices of products, as packed
  size_t activations = 0;   // bytes that their steps read and write, for each panel of tokens
};

Traffic traffic_of(const Program& program);

// Whether each thread takes panels of its own (or some threads a panel), so that it finds in its own cache what the
// step before left there, and reads all weights; else the threads share the rows of every panel, each reads a part of
// the weights, and much of the activations comes from another core. What is fewer bytes travels.
bool panels_apart(const Traffic& traffic, size_t panels, size_t threads);

}  // namespace obert
