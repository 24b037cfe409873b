// Runs a program. A batch of many sequences is cut into groups that each thread takes through all
// steps (but for a tail, see tail.h) by itself, without waiting for another; a batch of few is taken as one group
// whose steps are cut into tasks (see sharing.h), so that one hand-over to the thread pool serves the whole program.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>

#include "arena.h"
#include "group.h"
#include "padding.h"
#include "prepare.h"
#include "program.h"
#include "sharing.h"

namespace obert {

// Tokens that a group should have at least: fewer leave vector lanes and weight traffic unused.
constexpr size_t kGroupTokens = 128;

namespace {

std::vector<Sequences> groups_of(const Run& run) {
  std::vector<Sequences> groups;
  for (size_t first = 0; first < run.batch; first += groups.back().count) {
    size_t tokens = run.tokens_from(first), count = std::max<size_t>(1, kGroupTokens / tokens);
    groups.push_back({first, std::min(count, run.batch - first), tokens});
  }
  return groups;
}

}  // namespace

Executor::Executor(Program program, int threads)
    : program_(std::move(program)), threads_(std::max(1, threads)), arenas_(std::make_unique<Arenas>()) {
  program_.traffic = traffic_of(program_);
  program_.tail = tail_of(program_);
  program_.drops_padding = may_drop_padding(program_);
}
Executor::~Executor() = default;

void Executor::run(Caller& caller) const {
  Run run = prepare(program_, caller);
  if (run.batch == 0 || run.length == 0) return;
  const std::vector<Sequences> groups = groups_of(run);
  auto threads = static_cast<size_t>(threads_);
  // Alone, a group waits for no other thread; too few groups would leave threads without work.
  bool alone = threads == 1 || groups.size() >= 4 * threads || (groups.size() > 1 && groups.size() % threads == 0);
  if (alone) {
    run_groups(run, caller, groups);
  } else {
    run_together(run, caller);
  }
}

namespace {

// Errors of several threads: the last one is told.
class Errors {
 public:
  void add(const std::string& text) noexcept {
    try {
      std::lock_guard<std::mutex> lock(mutex_);
      text_ = text.empty() ? "failed" : text;
    } catch (...) {
      failed_ = true;
    }
  }
  void raise() const {
    if (!text_.empty() || failed_) throw std::runtime_error(text_.empty() ? "failed" : text_);
  }

 private:
  std::mutex mutex_;
  std::string text_;
  std::atomic<bool> failed_{false};
};

// Exceptions must not cross the thread pool of ONNX Runtime.
template <class F>
void parallel(Caller& caller, size_t count, const F& body) {
  struct Shared {
    const F* body;
    Errors errors;
  } shared{&body, {}};
  auto task = [](void* context, size_t i) {
    auto& s = *static_cast<Shared*>(context);
    try {
      (*s.body)(i, s.errors);
    } catch (const std::exception& e) {
      s.errors.add(e.what());
    }
  };
  if (count == 1) task(&shared, 0);
  else caller.parallel(count, task, &shared);
  shared.errors.raise();
}

}  // namespace

void Executor::run_groups(const Run& run, Caller& caller, const std::vector<Sequences>& groups) const {
  const Tail& tail = program_.tail;
  std::unique_ptr<Arena> shared;
  if (tail.first < program_.steps.size()) {
    shared = arenas_->take();
    shared->get(program_.arena_bytes * panels_of(run.batch));
  }
  parallel(caller, groups.size(), [&](size_t i, Errors&) {
    Sequences part = groups[i];
    auto arena = arenas_->take();
    part.memory = arena->get(program_.arena_bytes * part.panels());
    Group group(program_, run, part);
    group.go(0, tail.first);
    if (shared) group.carry(tail.reads, shared->memory());
    arenas_->give(std::move(arena));
  });
  if (!shared) return;
  run_shared(run, caller, {0, run.batch, 1, shared->memory()}, tail.first);
  arenas_->give(std::move(shared));
}

void Executor::run_together(const Run& run, Caller& caller) const {
  Sequences all{0, run.batch, run.tokens_from(0)};
  auto arena = arenas_->take();
  all.memory = arena->get(program_.arena_bytes * all.panels());
  run_shared(run, caller, all, 0);
  arenas_->give(std::move(arena));
}

void Executor::run_shared(const Run& run, Caller& caller, const Sequences& all, size_t first) const {
  auto threads = static_cast<size_t>(threads_);
  std::vector<Progress> progress(program_.steps.size() * threads);
  parallel(caller, threads, [&](size_t thread, Errors& errors) {
    Group group(program_, run, all, progress.data(), threads, thread);
    group.go(first, program_.steps.size());
    if (!group.error().empty()) errors.add(group.error());
  });
}

}  // namespace obert
