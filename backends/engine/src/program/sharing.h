// How threads share the steps of a program: each step is so many tasks, cut into a range for each thread.
//
// A step is done by all threads in step with each other, who help each other with their ranges, so that a neighbour's
// task finds its weights in its own thread's cache. Or, where a range reads and writes nothing of another's, each thread
// goes on to its next step when its own range is done, and only before a step that reads everything it waits, and
// meanwhile helps who is behind. Threads that come late, or never, find their ranges done.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace obert {

// Of one range of one step.
struct alignas(64) Progress {
  std::atomic<size_t> next{0};           // tasks taken
  std::atomic<size_t> done{0};
  std::atomic<size_t> size{SIZE_MAX};    // known when somebody has looked at it
};

class Sharing {
 public:
  // `progress` [steps][threads], shared by all threads; null for a thread that does it all. `apart`, by step: ranges
  // do not touch each other's data.
  Sharing(Progress* progress, std::vector<char> apart, size_t threads, size_t thread)
      : progress_(progress), apart_(std::move(apart)), threads_(threads), thread_(thread), reached_(threads, 0) {}

  bool alone() const { return !progress_; }
  const std::string& error() const { return error_; }

  // Takes part in the steps first .. last until all of them are done. compute(step) hands the tasks of a step to `each`.
  template <class F>
  void go(size_t first, size_t last, const F& compute) {
    reached_.assign(threads_, first);
    for (size_t step = first; step < last; ++step) {
      if (alone()) {
        compute(step);
        continue;
      }
      const bool own = apart_[step];
      if (step > first && !(own && apart_[step - 1])) wait_for_all(step, compute);
      take(step, own ? thread_ : kAllRanges, compute);
      // Somebody who helped may still be at one of its tasks.
      for (int spins = 0; own && !complete(step, thread_); ++spins) pause(spins);
    }
    if (!alone()) wait_for_all(last, compute);
  }

  // The tasks 0 .. count of the step that is being computed, as far as they are for this thread.
  template <class F>
  void each(size_t count, const F& f) {
    if (alone()) {
      for (size_t i = 0; i < count; ++i) f(i);
      return;
    }
    const size_t ranges = range_ == kAllRanges ? threads_ : 1, from = range_ == kAllRanges ? thread_ : range_;
    for (size_t other = 0; other < ranges; ++other) {
      const size_t range = (from + other) % threads_;
      const size_t begin = count * range / threads_, size = count * (range + 1) / threads_ - begin;
      Progress& p = at(step_, range);
      p.size.store(size, std::memory_order_relaxed);
      for (size_t i; (i = p.next.fetch_add(1, std::memory_order_relaxed)) < size;) {
        try {
          f(begin + i);
        } catch (const std::exception& e) {
          // Others wait for this task: it counts as done, and the run fails at its end.
          error_ = e.what();
        }
        p.done.fetch_add(1, std::memory_order_release);
      }
    }
  }

 private:
  static constexpr size_t kAllRanges = SIZE_MAX;
  // Looks before a waiting thread offers its processor to others.
  static constexpr int kSpins = 20000;

  Progress& at(size_t step, size_t range) const { return progress_[step * threads_ + range]; }
  bool complete(size_t step, size_t range) const {
    const Progress& p = at(step, range);
    return p.done.load(std::memory_order_acquire) == p.size.load(std::memory_order_relaxed);
  }

  template <class F>
  void take(size_t step, size_t range, const F& compute) {
    step_ = step;
    range_ = range;
    compute(step);
  }

  // Until all steps before `step` are done.
  template <class F>
  void wait_for_all(size_t step, const F& compute) {
    for (int spins = 0;; ++spins) {
      bool all = true;
      for (size_t range = 0; range < threads_; ++range) {
        while (reached_[range] < step && complete(reached_[range], range)) ++reached_[range];
        if (reached_[range] == step) continue;
        all = false;
        if (!open(reached_[range], range)) continue;
        // They may begin: what this thread did of that step, it did when all that the step reads was done.
        take(reached_[range], range, compute);
        spins = 0;
      }
      if (all) return;
      pause(spins);
    }
  }

  // Whether a range has tasks left.
  bool open(size_t step, size_t range) const {
    const Progress& p = at(step, range);
    return p.next.load(std::memory_order_relaxed) < p.size.load(std::memory_order_relaxed);
  }

  // Tasks that are taken are being computed, so a wait is shorter than one of them, unless the system has put their
  // thread aside.
  static void pause(int spins) {
    if (spins >= kSpins) return std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  Progress* progress_;
  std::vector<char> apart_;
  size_t threads_, thread_;
  size_t step_ = 0, range_ = kAllRanges;
  std::vector<size_t> reached_;   // by range: the first step that this thread does not know to be done
  std::string error_;
};

}  // namespace obert
