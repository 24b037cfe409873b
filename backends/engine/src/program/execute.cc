// Runs a program. A batch of many sequences is cut into groups that each thread takes through all
// steps (but for a tail, see tail.h) by itself, without waiting for another; a batch of few is taken as one group whose steps are
// cut into tasks. All threads then walk the same steps and take tasks off a counter, so that one
// hand-over to the thread pool serves the whole program.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include "prepare.h"
#include "program.h"
#include "traffic.h"

namespace obert {

// Tokens that a group should have at least: fewer leave vector lanes and weight traffic unused.
constexpr size_t kGroupTokens = 128;
// Rows of a product that one task computes: its int32 sums (256 bytes a row) stay in the second-level cache.
constexpr int kTaskRows = 256;
constexpr size_t kCacheLine = 64;
// Looks at a counter before a waiting thread offers its processor to others.
constexpr int kSpins = 20000;

void Arena::Free::operator()(void* p) const { std::free(p); }

uint8_t* Arena::get(size_t bytes) {
  if (bytes > size_ || !memory_) {
    size_t rounded = (std::max<size_t>(bytes, 1) + 4095) / 4096 * 4096;
    memory_.reset();
    size_ = 0;
    auto* fresh = static_cast<uint8_t*>(std::aligned_alloc(kCacheLine, rounded));
    if (!fresh) throw std::bad_alloc();
    std::memset(fresh, 0, rounded);
    memory_.reset(fresh);
    size_ = rounded;
  }
  return memory_.get();
}

// Arenas that no run uses at the moment.
class Arenas {
 public:
  std::unique_ptr<Arena> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Arena>();
    auto arena = std::move(free_.back());
    free_.pop_back();
    return arena;
  }
  void give(std::unique_ptr<Arena> arena) noexcept {
    try {
      std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(std::move(arena));
    } catch (...) {
      // No room to remember it: it is freed.
    }
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arena>> free_;
};

namespace {

// How far the threads are that share the tasks of a step. Each begins with a range of its own, so
// that neighbouring tasks find their weights in its cache, and then helps with the other ranges.
struct alignas(kCacheLine) Progress {
  std::atomic<size_t> next{0};   // tasks taken from the range of one thread
  std::atomic<size_t> done{0};   // of the whole step: counted in the entry of the first thread
};

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Group {
 public:
  // `progress` has an entry for each step and thread, null when one thread does it all. `tokens` of a sequence have
  // room in `memory`.
  Group(const Program& p, const Run& run, size_t first_sequence, size_t sequences, size_t tokens, uint8_t* memory,
        Progress* progress, int threads, int thread)
      : p_(p), k_(*p.kernels), run_(run), first_(first_sequence), sequences_(sequences), all_(sequences * tokens),
        picked_(sequences), memory_(memory), progress_(progress),
        threads_(static_cast<size_t>(threads)), thread_(static_cast<size_t>(thread)),
        apart_(progress && panels_apart(p.traffic, all_.panels, threads_)) {}

  const std::string& error() const { return error_; }

  // Copies the group's tokens in these buffers, one of each sequence, to where those of all `batch` sequences lie.
  void carry(const std::vector<int>& buffers, size_t batch, uint8_t* to) const {
    for (int b : buffers) {
      const Buffer& buffer = p_.buffers[b];
      const auto* from = reinterpret_cast<const uint32_t*>(base(b));
      auto* all = reinterpret_cast<uint32_t*>(to + buffer.offset * panels_of(batch));
      size_t size = dwords(b);
      for (size_t i = 0; i < sequences_; ++i)
        for (size_t row = 0; row < size; ++row) all[dword_at(first_ + i, size, row)] = from[dword_at(i, size, row)];
    }
  }

  // Takes part in the steps first .. last. Threads that come late find the tasks of the first ones done.
  void go(size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      step_ = i;
      const Step& s = p_.steps[i];
      now_ = s.picked ? picked_ : all_;
      switch (s.kind) {
        case StepKind::kImport: import(s, i); break;
        case StepKind::kRows: gather(s); break;
        case StepKind::kProduct: product(s); break;
        case StepKind::kPointwise: pointwise(s); break;
        case StepKind::kLayerNorm: layer_norm(s); break;
        case StepKind::kAttention: attention(s, i); break;
        case StepKind::kDequantize: dequantize(s); break;
        case StepKind::kPick: pick(s); break;
        case StepKind::kExport: write(s); break;
      }
    }
  }

 private:
  struct Tokens {
    size_t count, panels;
    explicit Tokens(size_t n) : count(n), panels(panels_of(n)) {}
  };

  uint8_t* base(int buffer) const { return memory_ + p_.buffers[buffer].offset * all_.panels; }
  float* floats(const Slice& s, size_t panel) const {
    if (!s.used()) return nullptr;
    const Buffer& b = p_.buffers[s.buffer];
    return reinterpret_cast<float*>(base(s.buffer)) + panel * panel_floats(b.width) + static_cast<size_t>(s.column) * kPanel;
  }
  uint8_t* bytes(const Slice& s, size_t panel) const {
    if (!s.used()) return nullptr;
    return base(s.buffer) + panel * panel_bytes(p_.buffers[s.buffer].width);
  }
  int tokens_in(size_t panel) const { return static_cast<int>(std::min<size_t>(kPanel, now_.count - panel * kPanel)); }
  int groups_in(size_t panel) const { return (tokens_in(panel) + kGroup - 1) / kGroup; }

  template <class F>
  void each(size_t count, const F& f) {
    if (!progress_) {
      for (size_t i = 0; i < count; ++i) f(i);
      return;
    }
    Progress* ranges = progress_ + step_ * threads_;
    std::atomic<size_t>& done = ranges[0].done;
    for (size_t other = 0; other < threads_; ++other) {
      size_t range = (thread_ + other) % threads_;
      size_t begin = count * range / threads_, size = count * (range + 1) / threads_ - begin;
      for (size_t i; (i = ranges[range].next.fetch_add(1, std::memory_order_relaxed)) < size;) {
        try {
          f(begin + i);
        } catch (const std::exception& e) {
          // Others wait for this task: it counts as done, and the run fails at its end.
          error_ = e.what();
        }
        done.fetch_add(1, std::memory_order_release);
      }
    }
    // Tasks that are taken are being computed, so the wait is shorter than one of them, unless the
    // system has put their thread aside.
    for (int spins = 0; done.load(std::memory_order_acquire) < count; ++spins) {
      if (spins < kSpins) pause_briefly();
      else std::this_thread::yield();
    }
  }

  void import(const Step& s, size_t step) {
    const Slice& to = s.out.used() ? s.out : s.quantized;
    size_t size = static_cast<size_t>(to.width);
    size_t first = first_ * run_.length;
    const void* data = run_.spread[step].empty() ? run_.inputs[s.tensor].data : run_.spread[step].data();
    each(now_.panels, [&](size_t panel) {
      size_t at = (first + panel * kPanel) * size;
      if (s.out.used()) {
        k_.import_float(static_cast<const float*>(data) + at, size, tokens_in(panel), to.width, floats(s.out, panel));
        return;
      }
      uint8_t* out = bytes(s.quantized, panel);
      k_.import_uint8(static_cast<const uint8_t*>(data) + at, size, tokens_in(panel), to.width,
                      static_cast<uint8_t>(s.flip_sign ? s.zero_point ^ 0x80 : s.zero_point), out);
      if (s.flip_sign) flip(out, panel_bytes(size));
    });
  }

  void gather(const Step& s) {
    auto width = static_cast<size_t>(s.out.width);
    size_t scratch_floats = 0;
    for (const Gathered& g : s.gathered) scratch_floats = std::max(scratch_floats, p_.rows[g.rows].scratch());
    // Groups of tokens, so that a short batch has work for every thread.
    size_t lanes = kPanel / kGroup;
    each(now_.panels * lanes, [&](size_t task) {
      size_t panel = task / lanes, lane = task % lanes * kGroup;
      int tokens = std::min(tokens_in(panel) - static_cast<int>(lane), kGroup);
      if (tokens <= 0) return;
      static thread_local Arena workspace;
      auto* memory = reinterpret_cast<float*>(workspace.get((scratch_floats + width * kGroup) * sizeof(float)));
      float* scratch = memory + width * kGroup;
      for (int t = 0; t < tokens; ++t) {
        size_t token = first_ * run_.length + panel * kPanel + lane + static_cast<size_t>(t);
        for (const Gathered& g : s.gathered) {
          const RowProgram& rows = p_.rows[g.rows];
          size_t at = place_of(run_.inputs[g.tensor], token, rows.count());
          rows.compute(k_, at, scratch, memory + static_cast<size_t>(t) * width, &g != s.gathered.data());
        }
      }
      k_.import_float(memory, width, tokens, s.out.width, floats(s.out, panel) + lane);
    });
  }

  // As Gather counts: from the end where it is negative. In range, which Preparation saw to.
  size_t place_of(const Tensor& ids, size_t at, size_t count) const {
    if (ids.shape.size() == 2 && ids.shape[0] == 1) at %= run_.length;   // one row for the whole batch
    int64_t i = ids.type == Type::kInt32 ? static_cast<const int32_t*>(ids.data)[at] : static_cast<const int64_t*>(ids.data)[at];
    return static_cast<size_t>(i < 0 ? i + static_cast<int64_t>(count) : i);
  }

  // Dwords of a token in a buffer, which lie kPanel apart, float or uint8.
  size_t dwords(int buffer) const { return p_.buffers[buffer].bytes / (kPanel * sizeof(uint32_t)); }
  static size_t dword_at(size_t token, size_t dwords, size_t row) { return (token / kPanel * dwords + row) * kPanel + token % kPanel; }

  void pick(const Step& s) {
    const Slice& to = s.out.used() ? s.out : s.quantized;
    size_t size = dwords(to.buffer), from_size = dwords(s.x.buffer), token = token_of(s);
    auto column = static_cast<size_t>(s.x.column);   // of floats: uint8 buffers are not shared
    const auto* from = reinterpret_cast<const uint32_t*>(base(s.x.buffer));
    each(now_.panels * (kPanel / kGroup), [&](size_t task) {
      size_t first = task * kGroup, end = std::min(now_.count, first + kGroup);
      auto* out = reinterpret_cast<uint32_t*>(base(to.buffer));
      if (first >= end) return;
      for (size_t row = 0; row < size; ++row) {
        std::memset(out + dword_at(first, size, row), 0, kGroup * sizeof *out);   // lanes without a token
        for (size_t i = first; i < end; ++i)
          out[dword_at(i, size, row)] = from[dword_at(i * run_.length + token, from_size, column + row)];
      }
    });
  }
  size_t token_of(const Step& s) const {
    return static_cast<size_t>(s.token < 0 ? s.token + static_cast<int64_t>(run_.length) : s.token);
  }

  static void flip(uint8_t* data, size_t count) {
    for (size_t i = 0; i < count; ++i) data[i] ^= 0x80;
  }

  void write(const Step& s) {
    size_t size = static_cast<size_t>(s.x.width);
    size_t first = s.picked ? first_ : first_ * run_.length;
    bool quantized = p_.buffers[s.x.buffer].quantized;
    each(now_.panels, [&](size_t panel) {
      size_t at = (first + panel * kPanel) * size;
      if (!quantized) {
        k_.export_float(floats(s.x, panel), tokens_in(panel), s.x.width, run_.outputs[s.tensor] + at, size);
        return;
      }
      auto* out = reinterpret_cast<uint8_t*>(run_.outputs[s.tensor]) + at;
      k_.export_uint8(bytes(s.x, panel), tokens_in(panel), s.x.width, out, size);
      if (s.flip_sign) flip(out, static_cast<size_t>(tokens_in(panel)) * size);
    });
  }

  Epilogue epilogue(const Step& s, size_t panel) const {
    Epilogue e;
    e.rounding = s.rounding;
    e.shift = s.beta.empty() ? nullptr : s.beta.data();
    e.out_rounding = s.out_rounding;
    e.activation = s.activation;
    e.residual = floats(s.residual, panel);
    e.factor = floats(s.factor, panel);
    e.out = floats(s.out, panel);
    e.quantized = bytes(s.quantized, panel);
    e.inverse_scale = s.inverse_scale;
    e.zero_point = s.zero_point;
    return e;
  }

  // Rows of one task, so that there are a few tasks for each thread and each is worth its start.
  int rows_of_task(int rows) const {
    if (!progress_) return kTaskRows;
    size_t tasks_wanted = threads_ * 4;
    size_t per_panel = std::max<size_t>(1, tasks_wanted / now_.panels);
    int size = static_cast<int>((static_cast<size_t>(rows) + per_panel - 1) / per_panel);
    return std::clamp((size + 31) / 32 * 32, 32, kTaskRows);
  }

  void product(const Step& s) {
    const Product& w = p_.products[s.product];
    int size = rows_of_task(w.rows);
    size_t cuts = static_cast<size_t>((w.rows + size - 1) / size);
    each(cuts * now_.panels, [&](size_t task) {
      size_t panel = apart_ ? task / cuts : task % now_.panels, cut = apart_ ? task % cuts : task / now_.panels;
      int begin = static_cast<int>(cut) * size, end = std::min(w.rows, begin + size);
      Epilogue e = epilogue(s, panel);
      e.bias = w.bias.data();
      alignas(kCacheLine) float sums[kTaskRows * kPanel];
      if (w.quantized) {
        auto* integers = reinterpret_cast<int32_t*>(sums);
        e.scale = w.scale.data();
        k_.multiply_int8(w.int8.view(), bytes(s.x, panel), groups_in(panel), begin, end, integers);
        k_.finish_int8(e, integers, groups_in(panel), begin, end);
      } else {
        k_.multiply_float(w.real.view(), floats(s.x, panel), groups_in(panel), begin, end, sums);
        k_.finish_float(e, sums, groups_in(panel), begin, end);
      }
    });
  }

  void pointwise(const Step& s) {
    int size = kTaskRows;
    size_t cuts = static_cast<size_t>((s.x.width + size - 1) / size);
    each(cuts * now_.panels, [&](size_t task) {
      size_t panel = task % now_.panels;
      int begin = static_cast<int>(task / now_.panels) * size, end = std::min(s.x.width, begin + size);
      k_.finish_float(epilogue(s, panel), floats(s.x, panel) + static_cast<size_t>(begin) * kPanel, groups_in(panel),
                      begin, end);
    });
  }

  void layer_norm(const Step& s) {
    // Rows of whole panels follow one another in memory; runs of 16 tokens are for threads that have no panel.
    size_t lanes = now_.panels % threads_ == 0 ? 1 : kPanel / kGroup;
    each(now_.panels * lanes, [&](size_t task) {
      size_t panel = task / lanes, lane = task % lanes;
      if (static_cast<int>(lane) >= groups_in(panel)) return;
      size_t shift = lane * kGroup;
      LayerNorm n;
      n.features = s.x.width;
      n.gamma = s.gamma.data();
      n.beta = s.beta.empty() ? nullptr : s.beta.data();
      n.epsilon = s.epsilon;
      n.x = floats(s.x, panel) + shift;
      n.residual = s.residual.used() ? floats(s.residual, panel) + shift : nullptr;
      n.out = s.out.used() ? floats(s.out, panel) + shift : nullptr;
      n.quantized = s.quantized.used() ? bytes(s.quantized, panel) + shift * kBlock : nullptr;
      n.inverse_scale = s.inverse_scale;
      n.zero_point = s.zero_point;
      k_.layer_norm(n, lanes == 1 ? groups_in(panel) : 1);
    });
  }

  void attention(const Step& s, size_t step) {
    int heads = s.x.width / s.head_dim;
    int length = static_cast<int>(run_.length);
    // A head and its keys and values are brought into place once in each task. Too few heads for the
    // threads are cut into blocks of queries all the same, and so is the sum of two masks.
    size_t all = sequences_ * static_cast<size_t>(heads);
    bool both = run_.masks[step][1].data != nullptr;
    bool whole = s.picked || (!both && (!progress_ || all >= 4 * threads_ || all % threads_ == 0));
    size_t all_queries = s.picked ? 1 : run_.length;
    size_t query_blocks = whole ? 1 : panels_of(run_.length), queries = whole ? all_queries : kPanel;
    size_t scratch = k_.attention_scratch(length, s.head_dim);
    each(all * query_blocks, [&](size_t task) {
      size_t block = task % query_blocks, head = task / query_blocks % heads, sequence = task / query_blocks / heads;
      Attention a;
      a.head_dim = s.head_dim;
      a.length = length;
      a.first = sequence * run_.length;
      a.queries = static_cast<int>(all_queries);
      a.first_query = sequence * all_queries;
      int column = static_cast<int>(head) * s.head_dim;
      auto part = [&](const Slice& from, const float*& data, int& width, int& at) {
        data = reinterpret_cast<const float*>(base(from.buffer));
        width = p_.buffers[from.buffer].width;
        at = from.column + column;
      };
      part(s.x, a.q, a.q_width, a.q_column);
      part(s.key, a.k, a.k_width, a.k_column);
      part(s.value, a.v, a.v_width, a.v_column);
      a.scale = s.scale;
      a.scores = s.scores;
      a.probabilities = s.probabilities;
      a.nan_to_zero = s.nan_to_zero;
      a.integers = p_.integer_attention;
      a.query_begin = static_cast<int>(block * queries);
      a.query_end = std::min(a.queries, a.query_begin + static_cast<int>(queries));
      if (s.out.used()) a.out = reinterpret_cast<float*>(base(s.out.buffer));
      if (s.quantized.used()) a.quantized = base(s.quantized.buffer);
      a.out_width = s.out.used() ? p_.buffers[s.out.buffer].width : p_.buffers[s.quantized.buffer].width;
      a.out_column = column;
      a.inverse_scale = s.inverse_scale;
      a.zero_point = s.zero_point;
      static thread_local Arena workspace;
      size_t row = static_cast<size_t>(length) * sizeof(float);
      uint8_t* memory = workspace.get(scratch + (both ? row * kPanel : 0));
      a.scratch = memory;
      mask(a, run_.masks[step], first_ + sequence, head, s.picked ? token_of(s) : 0, both ? reinterpret_cast<float*>(memory + scratch) : nullptr);
      k_.attention(a);
    });
  }

  // One mask is read in place; the rows of two are added up for the queries of the task.
  // The first query has row `row` of it.
  static void mask(Attention& a, const std::array<Mask, 2>& masks, size_t sequence, size_t head, size_t row, float* sum) {
    if (!masks[0].data) return;
    const float* first = masks[0].data + sequence * masks[0].batch + head * masks[0].head + row * masks[0].query;
    if (!sum) {
      a.mask = first;
      a.mask_stride = masks[0].query;
      return;
    }
    const float* second = masks[1].data + sequence * masks[1].batch + head * masks[1].head + row * masks[1].query;
    auto length = static_cast<size_t>(a.length);
    for (int q = a.query_begin; q < a.query_end; ++q) {
      float* to = sum + static_cast<size_t>(q - a.query_begin) * length;
      const float *x = first + static_cast<size_t>(q) * masks[0].query, *y = second + static_cast<size_t>(q) * masks[1].query;
      for (size_t k = 0; k < length; ++k) to[k] = x[k] + y[k];
    }
    a.mask = sum - static_cast<std::ptrdiff_t>(static_cast<size_t>(a.query_begin) * length);
    a.mask_stride = length;
  }

  void dequantize(const Step& s) {
    each(now_.panels, [&](size_t panel) {
      const uint8_t* x = bytes(s.x, panel);
      float* out = floats(s.out, panel);
      for (int i = 0; i < s.out.width; ++i)
        for (int t = 0; t < kPanel; ++t)
          out[i * kPanel + t] =
              s.inverse_scale * static_cast<float>(x[(static_cast<size_t>(i / kBlock) * kPanel + t) * kBlock + i % kBlock] - s.zero_point);
    });
  }

  const Program& p_;
  const Kernels& k_;
  const Run& run_;
  size_t first_, sequences_;
  Tokens all_, picked_, now_{0};   // now: those of the step
  uint8_t* memory_;
  Progress* progress_;
  size_t threads_, thread_;
  bool apart_;   // threads take panels of their own, and not rows of every panel
  size_t step_ = 0;
  std::string error_;
};

}  // namespace

Executor::Executor(Program program, int threads)
    : program_(std::move(program)), threads_(std::max(1, threads)), arenas_(std::make_unique<Arenas>()) {
  program_.traffic = traffic_of(program_);
  program_.tail = tail_of(program_);
}
Executor::~Executor() = default;

void Executor::run(Caller& caller) const {
  Run run = prepare(program_, caller);
  if (run.batch == 0 || run.length == 0) return;
  size_t sequences = std::max<size_t>(1, kGroupTokens / run.length);
  size_t groups = (run.batch + sequences - 1) / sequences;
  auto threads = static_cast<size_t>(threads_);
  // Alone, a group waits for no other thread; too few groups would leave threads without work.
  bool alone = threads == 1 || groups >= 4 * threads || (groups > 1 && groups % threads == 0);
  if (!alone) {
    sequences = run.batch;
    groups = 1;
  }
  if (alone) {
    run_groups(run, caller, sequences, groups);
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

void Executor::run_groups(const Run& run, Caller& caller, size_t sequences, size_t groups) const {
  const Tail& tail = program_.tail;
  std::unique_ptr<Arena> shared;
  if (tail.first < program_.steps.size()) {
    shared = arenas_->take();
    shared->get(program_.arena_bytes * panels_of(run.batch));
  }
  parallel(caller, groups, [&](size_t i, Errors&) {
    size_t first = i * sequences, count = std::min(sequences, run.batch - first);
    auto arena = arenas_->take();
    uint8_t* memory = arena->get(program_.arena_bytes * panels_of(count * run.length));
    Group group(program_, run, first, count, run.length, memory, nullptr, 1, 0);
    group.go(0, tail.first);
    if (shared) group.carry(tail.reads, run.batch, shared->memory());
    arenas_->give(std::move(arena));
  });
  if (!shared) return;
  run_tail(run, caller, shared->memory());
  arenas_->give(std::move(shared));
}

void Executor::run_tail(const Run& run, Caller& caller, uint8_t* memory) const {
  std::vector<Progress> progress(program_.steps.size() * static_cast<size_t>(threads_));
  parallel(caller, static_cast<size_t>(threads_), [&](size_t thread, Errors& errors) {
    Group group(program_, run, 0, run.batch, 1, memory, progress.data(), threads_, static_cast<int>(thread));
    group.go(program_.tail.first, program_.steps.size());
    if (!group.error().empty()) errors.add(group.error());
  });
}

void Executor::run_together(const Run& run, Caller& caller) const {
  auto arena = arenas_->take();
  uint8_t* memory = arena->get(program_.arena_bytes * panels_of(run.batch * run.length));
  std::vector<Progress> progress(program_.steps.size() * static_cast<size_t>(threads_));
  parallel(caller, static_cast<size_t>(threads_), [&](size_t thread, Errors& errors) {
    Group group(program_, run, 0, run.batch, run.length, memory, progress.data(), threads_, static_cast<int>(thread));
    group.go(0, program_.steps.size());
    if (!group.error().empty()) errors.add(group.error());
  });
  arenas_->give(std::move(arena));
}

}  // namespace obert
