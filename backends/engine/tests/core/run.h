// Runs a claimed graph through lowering and the executor, with threads of its own.
#pragma once
#include <deque>
#include <map>
#include <thread>
#include <vector>

#include "../../src/graph/match.h"
#include "../../src/program/lower.h"
#include "reference.h"

namespace obert::testing {

class Threads final : public Caller {
 public:
  std::vector<Tensor> inputs;
  std::vector<std::vector<uint8_t>> outputs;
  std::vector<std::vector<int64_t>> shapes;
  int threads = 2;

  Tensor input(int index) override { return inputs.at(index); }
  void* output(int index, const std::vector<int64_t>& shape) override {
    if (outputs.size() <= static_cast<size_t>(index)) {
      outputs.resize(index + 1);
      shapes.resize(index + 1);
    }
    shapes[index] = shape;
    outputs[index].assign(static_cast<size_t>(Array::count(shape)) * sizeof(float) + 1, 0xff);
    return outputs[index].data();
  }
  void parallel(size_t count, void (*task)(void*, size_t), void* context) override {
    if (threads == 1) {
      for (size_t i = 0; i < count; ++i) task(context, i);
      return;
    }
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t)
      pool.emplace_back([=] {
        for (size_t i = static_cast<size_t>(t); i < count; i += static_cast<size_t>(threads)) task(context, i);
      });
    for (std::thread& t : pool) t.join();
  }
};

// Values that the graph reads from outside, in order.
inline std::vector<int> open_inputs(const Graph& g) {
  std::vector<int> found;
  for (int v = 0; v < static_cast<int>(g.values.size()); ++v)
    if (g.values[v].producer < 0 && !g.values[v].is_constant && !g.values[v].consumers.empty()) found.push_back(v);
  return found;
}

// What a graph that matches as a whole reads and hands out. An input that is an output too is not made by it.
inline Signature signature_of(const Graph& g) {
  Signature signature;
  signature.inputs = open_inputs(g);
  for (int v = 0; v < static_cast<int>(g.values.size()); ++v)
    if (g.values[v].is_output && g.values[v].producer >= 0) signature.outputs.push_back(v);
  return signature;
}

// Results of a graph that matches as a whole, by output value; float outputs only. Inputs are float32 unless `types` says
// int64 or bool.
inline std::map<int, Array> run_engine(const Graph& g, const std::map<int, Array>& known, const Kernels* kernels, int threads,
                                       const std::map<int, Type>& types = {}, const Reshapes& reshapes = {}) {
  const Signature signature = signature_of(g);
  Executor executor(lower(g, match(g, reshapes), signature, kernels), threads);
  Threads caller;
  caller.threads = threads;
  std::deque<std::vector<float>> floats;
  std::deque<std::vector<int64_t>> integers;
  std::deque<std::vector<uint8_t>> booleans;
  for (int v : signature.inputs) {
    const Array& a = known.at(v);
    const auto found = types.find(v);
    const Type type = found == types.end() ? Type::kFloat : found->second;
    const void* data;
    if (type == Type::kInt64) data = integers.emplace_back(a.data.begin(), a.data.end()).data();
    else if (type == Type::kBool) data = booleans.emplace_back(a.data.begin(), a.data.end()).data();
    else data = floats.emplace_back(a.data.begin(), a.data.end()).data();
    caller.inputs.push_back({type, data, a.shape});
  }
  executor.run(caller);
  std::map<int, Array> results;
  for (size_t i = 0; i < signature.outputs.size(); ++i) {
    Array a;
    a.shape = caller.shapes[i];
    const auto* result = reinterpret_cast<const float*>(caller.outputs[i].data());
    a.data.assign(result, result + Array::count(a.shape));
    results[signature.outputs[i]] = a;
  }
  return results;
}

}  // namespace obert::testing
