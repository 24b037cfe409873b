#include "group.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "arena.h"

namespace obert {
namespace {

// Rows of a product that one task computes: its int32 sums (256 bytes a row) stay in the second-level cache.
constexpr int kTaskRows = 256;
static_assert(kTaskRows % kRowWindow == 0, "tasks begin where windows of rows do");

void flip(uint8_t* data, size_t count) {
  for (size_t i = 0; i < count; ++i) data[i] ^= 0x80;
}

// As Gather counts: from the end where it is negative. In range, which Preparation saw to.
size_t place_of(const Tensor& ids, size_t at, size_t length, size_t count) {
  if (ids.shape.size() == 2 && ids.shape[0] == 1) at %= length;   // one row for the whole batch
  int64_t i = ids.type == Type::kInt32 ? static_cast<const int32_t*>(ids.data)[at] : static_cast<const int64_t*>(ids.data)[at];
  return static_cast<size_t>(i < 0 ? i + static_cast<int64_t>(count) : i);
}

// One mask is read in place; the rows of two are added up for the queries of the task. The first query has row `row`.
void mask(Attention& a, const std::array<Mask, 2>& masks, size_t sequence, size_t head, size_t row, float* sum) {
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

}  // namespace

Group::Group(const Program& p, const Run& run, const Sequences& part, Progress* progress, size_t threads, size_t thread)
    : p_(p), k_(*p.kernels), run_(run), first_(part.first), sequences_(part.count), length_(part.tokens), all_(part.count * part.tokens),
      picked_(part.count), now_(0), memory_(part.memory), threads_(threads),
      apart_(progress && panels_apart(p.traffic, all_.panels, threads)),
      sharing_(progress, steps_apart(p, apart_ && all_.panels % threads == 0), threads, thread) {}

std::vector<char> Group::steps_apart(const Program& p, bool apart) {
  std::vector<char> steps;
  for (const Step& s : p.steps) steps.push_back(apart && !s.picked && s.kind != StepKind::kAttention);
  return steps;
}

void Group::go(size_t first, size_t last) {
  sharing_.go(first, last, [this](size_t step) { compute(step); });
}

void Group::compute(size_t step) {
  const Step& s = p_.steps[step];
  now_ = s.picked ? picked_ : all_;
  switch (s.kind) {
    case StepKind::kImport: return import(s, step);
    case StepKind::kRows: return gather(s);
    case StepKind::kProduct: return product(s);
    case StepKind::kPointwise: return pointwise(s);
    case StepKind::kWeighTokens: return weigh_tokens(s);
    case StepKind::kLayerNorm: return layer_norm(s);
    case StepKind::kRotary: return rotate(s);
    case StepKind::kAttention: return attention(s, step);
    case StepKind::kDequantize: return dequantize(s);
    case StepKind::kPick: return pick(s);
    case StepKind::kExport: return write(s);
  }
}

void Group::carry(const std::vector<int>& buffers, uint8_t* to) const {
  for (int b : buffers)
    for (size_t row = 0; row < dwords(b); ++row)
      for (size_t i = 0; i < sequences_; ++i) *dword(to, b, first_ + i, row) = *dword(memory_, b, i, row);
}

int Group::tokens_in(size_t panel) const { return static_cast<int>(std::min<size_t>(kPanel, now_.count - panel * kPanel)); }

void Group::import(const Step& s, size_t step) {
  if (s.by_position) return import_places(s, run_.places[step]);
  const Slice& to = s.out.used() ? s.out : s.quantized;
  size_t size = static_cast<size_t>(to.width);
  size_t first = first_ * run_.length;
  const void* data = run_.spread[step].empty() ? run_.inputs[s.tensor].data : run_.spread[step].data();
  sharing_.each(now_.panels, [&](size_t panel) {
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

void Group::import_places(const Step& s, const Places& places) {
  const auto size = static_cast<size_t>(s.out.width);
  sharing_.each(now_.panels, [&](size_t panel) {
    const auto tokens = static_cast<size_t>(tokens_in(panel));
    static thread_local Arena workspace;
    auto* rows = reinterpret_cast<float*>(workspace.get(tokens * size * sizeof(float)));
    for (size_t t = 0; t < tokens; ++t) {
      const size_t token = panel * kPanel + t, row = run_.sequence(first_ + token / length_) * places.sequence + token % length_;
      std::memcpy(rows + t * size, places.data + row * size, size * sizeof(float));
    }
    k_.import_float(rows, size, static_cast<int>(tokens), s.out.width, floats(s.out, panel));
  });
}

void Group::gather(const Step& s) {
  auto width = static_cast<size_t>(s.out.width);
  size_t scratch_floats = 0;
  for (const Gathered& g : s.gathered) scratch_floats = std::max(scratch_floats, p_.rows[g.rows].scratch());
  // Groups of tokens, so that a short batch has work for every thread.
  size_t lanes = kPanel / kGroup;
  sharing_.each(now_.panels * lanes, [&](size_t task) {
    size_t panel = task / lanes, lane = task % lanes * kGroup;
    int tokens = std::min(tokens_in(panel) - static_cast<int>(lane), kGroup);
    if (tokens <= 0) return;
    static thread_local Arena workspace;
    auto* memory = reinterpret_cast<float*>(workspace.get((scratch_floats + width * kGroup) * sizeof(float)));
    float* scratch = memory + width * kGroup;
    for (int t = 0; t < tokens; ++t) {
      size_t token = outside(panel * kPanel + lane + static_cast<size_t>(t));
      for (const Gathered& g : s.gathered) {
        const RowProgram& rows = p_.rows[g.rows];
        size_t at = place_of(run_.inputs[g.tensor], token, run_.length, rows.count());
        rows.compute(k_, at, scratch, memory + static_cast<size_t>(t) * width, &g != s.gathered.data());
      }
    }
    k_.import_float(memory, width, tokens, s.out.width, floats(s.out, panel) + lane);
  });
}

void Group::pick(const Step& s) {
  const Slice& to = s.out.used() ? s.out : s.quantized;
  const size_t size = dwords(to.buffer), token = s.token_in(run_.length);
  const auto column = static_cast<size_t>(s.x.column / (p_.buffers[s.x.buffer].quantized ? kBlock : 1));
  sharing_.each(now_.panels * (kPanel / kGroup), [&](size_t task) {
    const size_t first = task * kGroup, end = std::min(now_.count, first + kGroup);
    for (size_t row = 0; row < size && first < end; ++row) {
      uint32_t* out = dword(memory_, to.buffer, first, row);
      std::memset(out, 0, kGroup * sizeof *out);   // lanes without a token
      for (size_t i = first; i < end; ++i) out[i - first] = *dword(memory_, s.x.buffer, i * length_ + token, column + row);
    }
  });
}

void Group::write(const Step& s) {
  const size_t size = static_cast<size_t>(s.x.width);
  const size_t first = s.picked ? first_ : first_ * run_.length;
  const bool quantized = p_.buffers[s.x.buffer].quantized, in_order = run_.order.empty();
  const size_t bytes_of_one = size * (quantized ? 1 : sizeof(float));
  auto* all = reinterpret_cast<uint8_t*>(run_.outputs[s.tensor]);
  sharing_.each(now_.panels, [&](size_t panel) {
    const auto tokens = static_cast<size_t>(tokens_in(panel));
    static thread_local Arena workspace;
    uint8_t* out = in_order ? all + (first + panel * kPanel) * bytes_of_one : workspace.get(tokens * bytes_of_one);
    if (quantized) {
      k_.export_uint8(bytes(s.x, panel), tokens_in(panel), s.x.width, out, size);
      if (s.flip_sign) flip(out, tokens * size);
    } else {
      k_.export_float(floats(s.x, panel), tokens_in(panel), s.x.width, reinterpret_cast<float*>(out), size);
    }
    // One token of each sequence, or they would be in order.
    for (size_t t = 0; !in_order && t < tokens; ++t)
      std::memcpy(all + run_.sequence(first + panel * kPanel + t) * bytes_of_one, out + t * bytes_of_one, bytes_of_one);
  });
}

Epilogue Group::epilogue(const Step& s, size_t panel) const {
  Epilogue e;
  e.rounding = s.rounding;
  e.shift = s.beta.empty() ? nullptr : s.beta.data();
  e.shift_rounding = s.shift_rounding;
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

int Group::rows_of_task(int rows) const {
  if (sharing_.alone()) return kTaskRows;
  size_t tasks_wanted = threads_ * 4;
  size_t per_panel = std::max<size_t>(1, tasks_wanted / now_.panels);
  int size = static_cast<int>((static_cast<size_t>(rows) + per_panel - 1) / per_panel);
  return std::clamp((size + kRowWindow - 1) / kRowWindow * kRowWindow, kRowWindow, kTaskRows);
}

template <class F>
void Group::each_cut(int rows, int size, const F& f) {
  const auto cuts = static_cast<size_t>((rows + size - 1) / size);
  sharing_.each(cuts * now_.panels, [&](size_t task) {
    const size_t panel = apart_ ? task / cuts : task % now_.panels, cut = apart_ ? task % cuts : task / now_.panels;
    const int begin = static_cast<int>(cut) * size;
    f(Cut{panel, begin, std::min(rows, begin + size)});
  });
}

void Group::product(const Step& s) {
  const Product& w = p_.products[s.product];
  each_cut(w.rows, rows_of_task(w.rows), [&](const Cut& c) {
    const int groups = groups_in(c.panel);
    Epilogue e = epilogue(s, c.panel);
    e.bias = w.bias.data();
    alignas(kCacheLine) float sums[kTaskRows * kPanel];
    if (w.quantized) {
      auto* integers = reinterpret_cast<int32_t*>(sums);
      e.scale = w.scale.data();
      k_.multiply_int8(w.int8.view(), bytes(s.x, c.panel), groups, c.begin, c.end, integers);
      k_.finish_int8(e, integers, groups, c.begin, c.end);
    } else {
      k_.multiply_float(w.real.view(), floats(s.x, c.panel), groups, c.begin, c.end, sums);
      k_.finish_float(e, sums, groups, c.begin, c.end);
    }
  });
}

void Group::pointwise(const Step& s) {
  each_cut(s.x.width, kTaskRows, [&](const Cut& c) {
    const float* x = floats(s.x, c.panel) + static_cast<size_t>(c.begin) * kPanel;
    Epilogue e = epilogue(s, c.panel);
    if (!s.gamma.empty()) e.scale = s.gamma.data();
    k_.finish_float(e, x, groups_in(c.panel), c.begin, c.end);
  });
}

void Group::layer_norm(const Step& s) {
  // Rows of whole panels follow one another in memory; runs of 16 tokens are for threads that have no panel.
  size_t lanes = now_.panels % threads_ == 0 ? 1 : kPanel / kGroup;
  const int features = s.head_dim ? s.head_dim : s.x.width;
  sharing_.each(now_.panels * lanes, [&](size_t task) {
    size_t panel = task / lanes, lane = task % lanes;
    if (static_cast<int>(lane) >= groups_in(panel)) return;
    size_t shift = lane * kGroup;
    LayerNorm n;
    n.features = features;
    n.gamma = s.gamma.data();
    n.beta = s.beta.empty() ? nullptr : s.beta.data();
    n.epsilon = s.epsilon;
    n.centred = s.centred;
    n.x = floats(s.x, panel) + shift;
    n.residual = s.residual.used() ? floats(s.residual, panel) + shift : nullptr;
    n.out = s.out.used() ? floats(s.out, panel) + shift : nullptr;
    n.quantized = s.quantized.used() ? bytes(s.quantized, panel) + shift * kBlock : nullptr;
    n.inverse_scale = s.inverse_scale;
    n.zero_point = s.zero_point;
    n.out_scale = s.out_rounding.scale;
    for (int done = 0; done < s.x.width; done += features) {
      k_.layer_norm(n, lanes == 1 ? groups_in(panel) : 1);
      const size_t next = static_cast<size_t>(features) * kPanel;
      n.x += next;
      if (n.residual) n.residual += next;
      if (n.out) n.out += next;
      if (n.quantized) n.quantized += next;
    }
  });
}

void Group::rotate(const Step& s) {
  const int heads = std::max(1, kTaskRows / s.head_dim);
  each_cut(s.x.width, heads * s.head_dim, [&](const Cut& c) {
    const size_t first = static_cast<size_t>(c.begin) * kPanel;
    Rotary r;
    r.features = c.end - c.begin;
    r.head_dim = s.head_dim;
    r.halves = s.cosine.width != s.head_dim;
    r.x = floats(s.x, c.panel) + first;
    r.cosine = floats(s.cosine, c.panel);
    r.sine = floats(s.sine, c.panel);
    r.out = floats(s.out, c.panel) + first;
    k_.rotate(r, groups_in(c.panel));
  });
}

void Group::attention(const Step& s, size_t step) {
  int heads = s.x.width / s.head_dim;
  int length = static_cast<int>(length_);
  // A head and its keys and values are brought into place once in each task. Too few heads for the
  // threads are cut into blocks of queries all the same, and so is the sum of two masks.
  size_t all = sequences_ * static_cast<size_t>(heads);
  const bool both = run_.masks[step][1].data != nullptr, relative = s.by_query.used() || s.by_key.used();
  // Sums of all queries of a head stay in the second-level cache where they are no more than this.
  constexpr size_t kFewSums = 192 * 192;
  const bool many = both || (relative && length_ * length_ > kFewSums);
  bool whole = s.picked || (!many && (sharing_.alone() || all >= 4 * threads_ || all % threads_ == 0));
  size_t all_queries = s.picked ? 1 : length_;
  size_t query_blocks = whole ? 1 : panels_of(length_), queries = whole ? all_queries : kPanel;
  size_t scratch = k_.attention_scratch(length, s.head_dim);
  for (const PositionTerm* term : {&s.by_query, &s.by_key})
    if (term->used()) scratch = std::max(scratch, k_.relative_scratch(p_.tables[term->table].positions, s.head_dim));
  scratch = (scratch + kCacheLine - 1) / kCacheLine * kCacheLine;
  sharing_.each(all * query_blocks, [&](size_t task) {
    size_t block = task % query_blocks, head = task / query_blocks % heads, sequence = task / query_blocks / heads;
    Attention a;
    a.head_dim = s.head_dim;
    a.length = length;
    a.first = sequence * length_;
    a.queries = static_cast<int>(all_queries);
    a.first_query = sequence * all_queries;
    const int column = static_cast<int>(head) * s.head_dim;
    const auto column_in = [&](const Slice& shared) {   // of the head that so many heads of queries share
      return static_cast<int>(head) / (heads / (shared.width / s.head_dim)) * s.head_dim;
    };
    a.out_width = static_cast<int>(p_.arena_bytes / (kPanel * sizeof(float)));
    a.quantized_width = static_cast<int>(p_.arena_bytes / kPanel);
    if (p_.buffers[s.x.buffer].quantized) {
      a.q_codes = bytes(s.x, 0), a.k_codes = bytes(s.key, 0), a.v_codes = bytes(s.value, 0);
      a.q_width = a.k_width = a.v_width = a.quantized_width;
    } else {
      a.q = floats(s.x, 0), a.k = floats(s.key, 0), a.v = floats(s.value, 0);
      a.q_width = a.k_width = a.v_width = a.out_width;
    }
    a.q_column = a.out_column = column;
    a.k_column = column_in(s.key), a.v_column = column_in(s.value);
    a.scale = s.scale;
    a.of_q = s.of_x, a.of_k = s.of_key, a.of_v = s.of_value;
    a.scores = s.scores;
    a.probabilities = s.probabilities;
    a.nan_to_zero = s.nan_to_zero;
    a.integers = p_.integer_attention;
    a.query_begin = static_cast<int>(block * queries);
    a.query_end = std::min(a.queries, a.query_begin + static_cast<int>(queries));
    a.out = floats(s.out, 0);
    a.quantized = bytes(s.quantized, 0);
    a.inverse_scale = s.inverse_scale;
    a.zero_point = s.zero_point;
    static thread_local Arena workspace;
    const size_t sums = static_cast<size_t>(a.query_end - a.query_begin) * length_ * sizeof(float);
    uint8_t* memory = workspace.get(scratch + (both ? sums : 0) + (relative ? sums : 0));
    a.scratch = memory;
    auto* sum = both ? reinterpret_cast<float*>(memory + scratch) : nullptr;
    mask(a, run_.masks[step], run_.sequence(first_ + sequence), head, s.picked ? s.token_in(run_.length) : 0, sum);
    if (relative) relative_scores(a, s, step, head, reinterpret_cast<float*>(memory + scratch + (both ? sums : 0)), memory);
    k_.attention(a);
  });
}

void Group::relative_scores(Attention& a, const Step& s, size_t step, size_t head, float* sum, void* scratch) const {
  RelativeScores r;
  r.head_dim = a.head_dim, r.length = a.length;
  r.first = a.first, r.first_query = a.first_query;
  r.q = a.q, r.q_width = a.q_width, r.q_column = a.q_column;
  r.k = a.k, r.k_width = a.k_width, r.k_column = a.k_column;
  const auto term = [&](const PositionTerm& t, const PairIndex& pairs, size_t at) {
    if (!t.used()) return RelativeTerm{};
    const PositionTable& table = p_.tables[t.table];
    return RelativeTerm{table.head(head), pairs.data + at, pairs.stride, t.rounding, t.factor};
  };
  const size_t token = s.picked ? s.token_in(run_.length) : 0;
  r.by_query = term(s.by_query, run_.pairs[step][0], token * run_.pairs[step][0].stride);
  r.by_key = term(s.by_key, run_.pairs[step][1], token);
  r.mask = a.mask, r.mask_stride = a.mask_stride;
  r.query_begin = a.query_begin, r.query_end = a.query_end;
  r.out = sum;
  r.scratch = scratch;
  k_.relative_scores(r);
  a.mask = sum - static_cast<std::ptrdiff_t>(static_cast<size_t>(a.query_begin) * length_);
  a.mask_stride = length_;
}

void Group::weigh_tokens(const Step& s) {
  sharing_.each(now_.panels, [&](size_t panel) {
    const float *x = floats(s.x, panel), *weights = floats(s.factor, panel);
    float* out = floats(s.out, panel);
    const int tokens = groups_in(panel) * kGroup;
    for (int i = 0; i < s.x.width; ++i, x += kPanel, out += kPanel)
      for (int t = 0; t < tokens; ++t) out[t] = x[t] * weights[t];
  });
}

void Group::dequantize(const Step& s) {
  sharing_.each(now_.panels, [&](size_t panel) {
    const uint8_t* x = bytes(s.x, panel);
    float* out = floats(s.out, panel);
    for (int i = 0; i < s.out.width; ++i)
      for (int t = 0; t < kPanel; ++t)
        out[i * kPanel + t] =
            s.inverse_scale * static_cast<float>(x[(static_cast<size_t>(i / kBlock) * kPanel + t) * kBlock + i % kBlock] - s.zero_point);
  });
}

}  // namespace obert
