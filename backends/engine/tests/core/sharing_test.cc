// Every task runs once, and not before what it may read is done: with threads in step, apart, late and missing.
#include "../../src/program/sharing.h"

#include <chrono>
#include <memory>

#include "builder.h"
#include "check.h"

using namespace obert;
using namespace obert::testing;

namespace {

struct Plan {
  std::vector<char> apart;      // by step
  std::vector<size_t> count;    // tasks, by step
  size_t threads;

  size_t begin(size_t step, size_t range) const { return count[step] * range / threads; }
  size_t range_of(size_t step, size_t task) const {
    size_t range = 0;
    while (task >= begin(step, range + 1)) ++range;
    return range;
  }
};

Plan random_plan(Numbers& r, size_t threads) {
  Plan p;
  p.threads = threads;
  for (int steps = 1 + r.below(30); steps > 0; --steps) {
    p.apart.push_back(r.below(3) != 0);
    // Ranges of steps apart are the same panels of several tasks each; others have any number, also fewer than threads.
    p.count.push_back(p.apart.back() ? threads * static_cast<size_t>(1 + r.below(4)) : static_cast<size_t>(r.below(9)));
  }
  return p;
}

void run(const Plan& p, size_t first, size_t started, int late_us, size_t fails) {
  const size_t steps = p.count.size();
  std::vector<Progress> progress(steps * p.threads);
  // How often each task ran; done ones count in `finished` by step and range.
  std::vector<std::unique_ptr<std::atomic<int>[]>> ran;
  for (size_t n : p.count) ran.emplace_back(new std::atomic<int>[n + 1]());
  std::vector<std::atomic<size_t>> finished(steps * p.threads);
  std::atomic<int> early{0}, errors{0};
  const auto all_done = [&](size_t step, size_t range) {
    return finished[step * p.threads + range].load(std::memory_order_relaxed) == p.begin(step, range + 1) - p.begin(step, range);
  };
  const auto work = [&](size_t thread) {
    Sharing sharing(progress.data(), p.apart, p.threads, thread);
    sharing.go(first, steps, [&](size_t step) {
      sharing.each(p.count[step], [&](size_t task) {
        const size_t mine = p.range_of(step, task);
        const bool own = p.apart[step] && (step == first || p.apart[step - 1]);
        for (size_t range = 0; step > first && range < p.threads; ++range)
          if ((!own || range == mine) && !all_done(step - 1, range)) ++early;
        // Some take long, so that others come by meanwhile.
        if ((step * 7 + task * 13) % 6 == 0) std::this_thread::sleep_for(std::chrono::microseconds(60));
        ++ran[step][task];
        finished[step * p.threads + mine].fetch_add(1, std::memory_order_relaxed);
        if (step * 31 + task == fails) throw std::runtime_error("as wanted");
      });
    });
    // What a thread leaves behind is done.
    for (size_t step = first; step < steps; ++step)
      for (size_t range = 0; range < p.threads; ++range)
        if (!all_done(step, range)) ++early;
    errors += !sharing.error().empty();
  };
  std::vector<std::thread> pool;
  for (size_t t = 0; t < started; ++t)
    pool.emplace_back([&, t] {
      if (t % 2) std::this_thread::sleep_for(std::chrono::microseconds(late_us));
      work(p.threads - 1 - t);
    });
  for (std::thread& t : pool) t.join();
  CHECK_SAME(early.load(), 0);
  size_t wrong = 0, failing = 0;
  for (size_t step = 0; step < steps; ++step)
    for (size_t task = 0; task < p.count[step]; ++task) {
      wrong += ran[step][task].load() != (step >= first);
      failing += step >= first && step * 31 + task == fails;
    }
  CHECK_SAME(wrong, 0u);
  CHECK_SAME(static_cast<size_t>(errors.load()), failing);
}

}  // namespace

int main() {
  Numbers r(1);
  for (int round = 0; round < 400; ++round) {
    const size_t threads = static_cast<size_t>(1 + r.below(5));
    const Plan p = random_plan(r, threads);
    const size_t started = static_cast<size_t>(1 + r.below(static_cast<int>(threads)));
    run(p, static_cast<size_t>(r.below(static_cast<int>(p.count.size()))), started, r.below(3) * 100, static_cast<size_t>(r.below(200)));
  }
  return check::report("sharing");
}
