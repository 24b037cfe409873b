// Rates of every kernel at the shapes of BERT-base and MiniLM, one thread, minimum of repeats.
//   kernels_bench [isa] [int8|float|finish|norm|rotary|attention|relative|move ...]
// `share` is the rate against the multiply peak of the same instruction mix in registers only.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>

#include "cases.h"
#include "peak.h"

using namespace obert;

namespace {

double seconds(const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  int inner = 1;
  for (int repeat = 0; repeat < 15; ++repeat) {
    const auto begin = Clock::now();
    for (int i = 0; i < inner; ++i) run();
    const double time = std::chrono::duration<double>(Clock::now() - begin).count();
    if (time < 2e-3 && repeat == 0) {
      inner = static_cast<int>(3e-3 / (time + 1e-9)) + 1;
      continue;
    }
    best = std::min(best, time / inner);
  }
  return best;
}

struct Shape {
  int outputs, inputs;
};
const Shape kShapes[] = {{768, 768}, {2304, 768}, {3072, 768}, {768, 3072},
                         {384, 384}, {1536, 384}, {384, 1536}};

// Weights as training leaves them: normal, with the largest of a row at 127.
std::vector<int16_t> bell_weights(Random& random, int rows, int inputs, double density) {
  std::vector<int16_t> w(static_cast<size_t>(rows) * inputs);
  for (int r = 0; r < rows; ++r)
    for (int b = 0; b < inputs; b += kBlock) {
      if (!random.chance(density)) continue;
      for (int i = b; i < b + kBlock; ++i)
        w[static_cast<size_t>(r) * inputs + i] =
            static_cast<int16_t>(std::fmin(127, std::fmax(-127, std::nearbyint(random.normal(127 / 3.5f)))));
    }
  return w;
}

// As the executor runs a product: ranges of rows small enough to finish from the cache, all panels.
constexpr int kRowsAtOnce = 64;

void bench_int8(const Kernels& k, double peak) {
  for (const Shape& s : kShapes)
    for (double density : {1., .2, .1}) {
      Random random(1);
      const std::vector<int16_t> w = bell_weights(random, s.outputs, s.inputs, density);
      const SparseInt8Storage packed = pack_sparse_int8(w.data(), s.outputs, s.inputs, k.packing);
      const SparseInt8 view = packed.view();
      double kept = 0;
      for (size_t i = 0; i < w.size(); i += 4) kept += w[i] || w[i + 1] || w[i + 2] || w[i + 3];
      // What the multipliers are busy with: tiles take part with their zeros.
      const double busy = view.tiles.start ? static_cast<double>(packed.tiles.place.size()) * kTileDwords : kept;
      std::printf("%-11s int8  %4d x %4d density %.1f ", k.name, s.outputs, s.inputs, density);
      for (int tokens : {16, 64, 128}) {
        const size_t panels = panels_of(static_cast<size_t>(tokens));
        const int groups = std::min(4, tokens / kGroup);
        Buffer<uint8_t> x(panels * panel_bytes(static_cast<size_t>(s.inputs)));
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(random.integer(0, 255));
        Buffer<int32_t> acc(kRowsAtOnce * kPanel);
        const double time = seconds([&] {
          for (int r = 0; r < s.outputs; r += kRowsAtOnce)
            for (size_t p = 0; p < panels; ++p)
              k.multiply_int8(view, x.data() + p * panel_bytes(static_cast<size_t>(s.inputs)), groups, r,
                              std::min(s.outputs, r + kRowsAtOnce), acc.data());
        });
        const double rate = kept * 4 * tokens / time * 1e-9;
        std::printf(" | %3d tokens %7.1f GMAC/s %3.0f%%", tokens, rate, 100 * rate * busy / kept / peak);
      }
      std::printf("\n");
    }
}

void bench_float(const Kernels& k, double peak) {
  for (const Shape& s : {Shape{768, 768}, Shape{3072, 768}, Shape{768, 3072}})
    for (double density : {1., .2, .1}) {
      Random random(1);
      std::vector<float> w(static_cast<size_t>(s.outputs) * s.inputs);
      for (float& v : w) v = random.chance(density) ? random.normal() : 0.f;
      const SparseFloatStorage packed = pack_sparse_float(w.data(), s.outputs, s.inputs, k.packing);
      const SparseFloat view = packed.view();
      Buffer<float> x(panel_floats(static_cast<size_t>(s.inputs)), .5f), acc(kRowsAtOnce * kPanel);
      const double time = seconds([&] {
        for (int r = 0; r < s.outputs; r += kRowsAtOnce)
          k.multiply_float(view, x.data(), 4, r, std::min(s.outputs, r + kRowsAtOnce), acc.data());
      });
      const double rate = static_cast<double>(packed.index.size()) * kPanel / time * 1e-9;
      std::printf("%-11s float %4d x %4d density %.1f  |  64 tokens %7.1f GMAC/s %3.0f%%\n", k.name,
                  s.outputs, s.inputs, density, rate, 100 * rate / peak);
    }
}

void bench_finish(const Kernels& k) {
  const int rows = 64;  // what one multiply leaves behind
  const size_t n = static_cast<size_t>(rows) * kPanel;
  Buffer<int32_t> acc(n);
  Buffer<float> scale(rows, 1e-3f), bias(rows, .1f), residual(n, .5f), out(n);
  Buffer<uint8_t> quantized(n);
  Random random(1);
  for (size_t i = 0; i < n; ++i) acc[i] = random.integer(-4000, 4000);
  const auto run = [&](const char* what, Activation a, bool to_float, bool to_bytes, bool add) {
    Epilogue e;
    e.scale = scale.data(), e.bias = bias.data(), e.activation = a;
    e.residual = add ? residual.data() : nullptr;
    e.out = to_float ? out.data() : nullptr;
    e.quantized = to_bytes ? quantized.data() : nullptr;
    e.inverse_scale = 40, e.zero_point = 8;
    const double time = seconds([&] { k.finish_int8(e, acc.data(), 4, 0, rows); });
    std::printf("%-11s finish %-28s %6.3f ns an element\n", k.name, what,
                time / static_cast<double>(n) * 1e9);
  };
  run("to float", Activation::kNone, true, false, false);
  run("to uint8", Activation::kNone, false, true, false);
  run("residual to float", Activation::kNone, true, false, true);
  run("ReLU to uint8", Activation::kRelu, false, true, false);
  run("GELU (erf) to uint8", Activation::kGeluErf, false, true, false);
  run("GELU (erf) to float", Activation::kGeluErf, true, false, false);
  run("GELU (tanh) to uint8", Activation::kGeluTanh, false, true, false);
  run("SiLU to uint8", Activation::kSilu, false, true, false);
}

void bench_norm(const Kernels& k) {
  for (int features : {384, 768}) {
    const size_t n = static_cast<size_t>(features) * kPanel;
    Buffer<float> x(n), r(n, .1f), out(n), gamma(static_cast<size_t>(features), 1.f),
        beta(static_cast<size_t>(features), 1.f);
    Buffer<uint8_t> quantized(n);
    Random random(1);
    for (size_t i = 0; i < n; ++i) x[i] = random.normal();
    LayerNorm l;
    l.features = features, l.gamma = gamma.data(), l.beta = beta.data(), l.epsilon = 1e-12f;
    l.x = x.data(), l.residual = r.data(), l.out = out.data(), l.quantized = quantized.data(),
    l.inverse_scale = 40, l.zero_point = 128;
    const double time = seconds([&] { k.layer_norm(l, 4); });
    std::printf("%-11s layer_norm %d with residual, to float and uint8 %6.3f ns an element, %5.1f GB/s\n",
                k.name, features, time / static_cast<double>(n) * 1e9,
                static_cast<double>(n) * 13 / time * 1e-9);
  }
}

void bench_rotary(const Kernels& k) {
  constexpr size_t kFeatures = 768, kHead = 64;
  Buffer<float> x(kFeatures * kPanel, .5f), out(x.size()), cosine(kHead * kPanel, .8f), sine(cosine.size(), .6f);
  Rotary r;
  r.features = kFeatures, r.head_dim = kHead;
  r.x = x.data(), r.cosine = cosine.data(), r.sine = sine.data(), r.out = out.data();
  const double time = seconds([&] { k.rotate(r, 4); });
  std::printf("%-11s rotary 768, heads of 64 %6.3f ns an element, %5.1f GB/s\n", k.name,
              time / static_cast<double>(x.size()) * 1e9, static_cast<double>(x.size()) * 16 / time * 1e-9);
}

void bench_attention(const Kernels& k, double peak) {
  constexpr const char* kNumbers[] = {"floats", "codes", "codes, 16-bit p"};
  for (int length : {16, 64, 128, 384})
    for (int head_dim : {32, 64})
      for (int numbers = 0; numbers < 3; ++numbers) {
        const int width = 768;
        const size_t panels = panels_of(static_cast<size_t>(length));
        Buffer<float> q(panels * panel_floats(width)), key(q.size()), v(q.size());
        Buffer<uint8_t> q_codes(panels * panel_bytes(width)), k_codes(q_codes.size()), v_codes(q_codes.size());
        Random random(1);
        for (size_t i = 0; i < q.size(); ++i)
          q[i] = random.normal(), key[i] = random.normal(), v[i] = random.normal();
        for (Buffer<uint8_t>* x : {&q_codes, &k_codes, &v_codes})
          for (size_t i = 0; i < x->size(); ++i) (*x)[i] = static_cast<uint8_t>(random.integer(90, 165));
        Buffer<uint8_t> quantized(panels * panel_bytes(width));
        Buffer<char> scratch(k.attention_scratch(length, head_dim));
        std::vector<float> mask(static_cast<size_t>(length));
        Attention a;
        a.head_dim = head_dim, a.length = length;
        a.integers = numbers == 2;
        if (numbers) {
          a.q_codes = q_codes.data(), a.k_codes = k_codes.data(), a.v_codes = v_codes.data();
          a.of_q = a.of_k = a.of_v = {.04f, 128};
        } else {
          a.q = q.data(), a.k = key.data(), a.v = v.data();
        }
        a.q_width = a.k_width = a.v_width = a.out_width = a.quantized_width = width;
        a.q_column = a.k_column = a.v_column = a.out_column = 128;
        a.scale = .125f, a.mask = mask.data(), a.queries = a.query_end = length, a.quantized = quantized.data(),
        a.inverse_scale = 40, a.zero_point = 128;
        a.scratch = scratch.data();
        const double time = seconds([&] { k.attention(a); });
        const double rate = 2. * length * length * head_dim / time * 1e-9;
        std::printf("%-11s attention of %-18s length %3d head %2d: %7.1f us, %6.1f GMAC/s, %3.0f%% of the float peak\n", k.name,
                    kNumbers[numbers], length, head_dim, time * 1e6, rate, 100 * rate / peak);
      }
}

// Positions as in DeBERTa: 512 columns, of which neighbours need neighbours.
void bench_relative(const Kernels& k, double peak) {
  constexpr int kWidth = 768, kHead = 64, kPositions = 512;
  for (int length : {16, 64, 128, 384}) {
    const auto tokens = static_cast<size_t>(length);
    Buffer<float> q(panels_of(tokens) * panel_floats(kWidth)), key(q.size());
    Random random(1);
    for (size_t i = 0; i < q.size(); ++i) q[i] = random.normal(), key[i] = random.normal();
    Buffer<float> table(kHead * kPositions, .5f), out(tokens * tokens), mask(tokens);
    Buffer<int32_t> index(tokens * tokens);
    for (int i = 0; i < length; ++i)
      for (int j = 0; j < length; ++j) index[static_cast<size_t>(i) * tokens + static_cast<size_t>(j)] = std::clamp(256 + i - j, 0, kPositions - 1);
    Buffer<char> scratch(k.relative_scratch(kPositions, kHead));
    RelativeScores r;
    r.head_dim = kHead, r.length = length;
    r.q = q.data(), r.k = key.data(), r.q_width = r.k_width = kWidth, r.q_column = r.k_column = 128;
    r.by_query = r.by_key = {table.data(), index.data(), tokens, {}, .125f};
    r.mask = mask.data(), r.query_end = length;
    r.out = out.data();
    r.scratch = scratch.data();
    const double time = seconds([&] { k.relative_scores(r); });
    const double rate = 2. * length * length * kHead / time * 1e-9;
    std::printf("%-11s relative_scores length %3d head 64: %7.1f us, %6.1f GMAC/s that count, %3.0f%% of the float peak\n", k.name, length,
                time * 1e6, rate, 100 * rate / peak);
  }
}

void bench_move(const Kernels& k) {
  const int features = 768;
  const size_t n = features * kPanel;
  Buffer<float> rows(n), panel(n);
  Buffer<uint8_t> bytes(n), packed(n);
  const auto show = [&](const char* what, double time, double moved) {
    std::printf("%-11s %-12s %5.1f GB/s\n", k.name, what, moved / time * 1e-9);
  };
  show("import_float",
       seconds([&] { k.import_float(rows.data(), features, kPanel, features, panel.data()); }), 8. * n);
  show("export_float",
       seconds([&] { k.export_float(panel.data(), kPanel, features, rows.data(), features); }), 8. * n);
  show("import_uint8",
       seconds([&] { k.import_uint8(bytes.data(), features, kPanel, features, 0, packed.data()); }), 2. * n);
  show("export_uint8",
       seconds([&] { k.export_uint8(packed.data(), kPanel, features, bytes.data(), features); }), 2. * n);
}

}  // namespace

int main(int count, char** words) {
  const auto wanted = [&](const char* word, bool isa) {
    bool any = false;
    for (int i = 1; i < count; ++i) {
      const bool names_isa = find_kernels(words[i]) != nullptr;
      if (names_isa != isa) continue;
      any = true;
      if (!std::strcmp(words[i], word)) return true;
    }
    return !any;
  };
  const KernelSet set = available_kernels();
  if (set.count == 0) std::printf("OBERT_FORCE_ISA names no table of this processor\n");
  for (size_t i = 0; i < set.count; ++i) {
    const Kernels& k = *set.tables[i];
    if (!wanted(k.name, true)) continue;
    const Peak peak = measure_peak(k.name);  // 0 where it has no measure: shares say inf
    if (peak.int8 > 0)
      std::printf("%-11s peak in registers: int8 %.1f GMAC/s, float %.1f GMAC/s\n", k.name, peak.int8,
                  peak.float32);
    if (peak.bfloat16 > 0)
      std::printf("%-11s peak in registers: bfloat16 %.1f GMAC/s, three to a product of floats in attention\n", k.name,
                  peak.bfloat16);
    if (wanted("int8", false)) bench_int8(k, peak.int8);
    if (wanted("float", false)) bench_float(k, peak.float32);
    if (wanted("finish", false)) bench_finish(k);
    if (wanted("norm", false)) bench_norm(k);
    if (wanted("rotary", false)) bench_rotary(k);
    if (wanted("attention", false)) bench_attention(k, peak.float32);
    if (wanted("relative", false)) bench_relative(k, peak.float32);
    if (wanted("move", false)) bench_move(k);
  }
}
