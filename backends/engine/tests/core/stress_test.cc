// Calls of one program from several threads at once, each with threads of its own, in all the ways a
// batch is cut: the results are those of calls one after another. Meant for the thread sanitizer.
#include <atomic>

#include "builder.h"
#include "check.h"
#include "run.h"

using namespace obert;
using namespace obert::testing;

namespace {

struct Work {
  int64_t batch, length;
  std::vector<float> hidden, mask;
  std::vector<uint8_t> expected;
};

std::vector<uint8_t> run(const Executor& executor, const Signature& signature, int hidden, const Work& work, int threads) {
  Threads caller;
  caller.threads = threads;
  for (int v : signature.inputs) {
    if (v == hidden) caller.inputs.push_back({Type::kFloat, work.hidden.data(), {work.batch, work.length, 32}});
    else caller.inputs.push_back({Type::kFloat, work.mask.data(), {work.batch, 1, 1, work.length}});
  }
  executor.run(caller);
  return caller.outputs.at(0);
}

// `picks`: the first token of each sequence is read, so that calls of many sequences have a tail. `in_codes`: queries, keys
// and values are codes, and with `integers` probabilities have 16 bits.
void stress(bool picks, bool in_codes, bool integers) {
  constexpr int kCallers = 4, kRounds = 6, kThreads = 2;
  Builder b;
  Numbers r(5);
  int hidden = b.input("hidden"), mask = b.input("mask");
  int out = encoder_layer(b, r, hidden, mask, 32, 2, 48, 0.4f, in_codes);
  b.output(picks ? b.token(out, 0) : out);
  const Signature signature = signature_of(b.graph);
  KernelSet set = available_kernels();
  for (size_t i = 0; i < set.count; ++i) {
    Program program = lower(b.graph, match(b.graph), signature, set.tables[i]);
    program.integer_attention = integers;
    Executor executor(std::move(program), kThreads);
    std::vector<Work> works;
    // One group for all threads, groups for each, an empty batch between them.
    for (auto [batch, length] : std::vector<std::pair<int64_t, int64_t>>{{1, 70}, {9, 33}, {0, 16}, {2, 5}, {40, 40}}) {
      Work w{batch, length, r.normals(static_cast<size_t>(batch * length * 32)), {}, {}};
      w.mask.assign(static_cast<size_t>(batch * length), 0.f);
      w.expected = run(executor, signature, hidden, w, 1);
      works.push_back(std::move(w));
    }
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < kCallers; ++c)
      callers.emplace_back([&, c] {
        for (int round = 0; round < kRounds; ++round) {
          const Work& w = works[static_cast<size_t>(c + round) % works.size()];
          if (run(executor, signature, hidden, w, kThreads) != w.expected) ++wrong;
        }
      });
    for (std::thread& t : callers) t.join();
    CHECK_SAME(wrong.load(), 0);
  }
}

}  // namespace

int main() {
  for (bool picks : {false, true}) {
    stress(picks, false, false);
    stress(picks, true, false);
    stress(picks, true, true);
  }
  return check::report("stress");
}
