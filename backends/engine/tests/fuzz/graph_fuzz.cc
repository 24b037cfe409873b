// Fuzz target: bytes become a graph, either of the ops that the engine reads, wired at random with
// shapes that may not fit, or one of the graphs of seeds.h with damage done to it. Whatever it is, it
// must be claimed in part or left alone, and what is claimed must run or be refused. Built with clang
// and -fsanitize=fuzzer (OBERT_ENGINE_FUZZER), or with a main of its own that draws bytes from a seed
// (OBERT_FUZZ_MAIN).
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "../core/builder.h"
#include "../core/run.h"
#include "bytes.h"
#include "damage.h"
#include "emulated_amx.h"
#include "seeds.h"

using namespace obert;
using namespace obert::testing;

namespace {

constexpr int64_t kWidths[] = {1, 3, 4, 8, 16, 20};

class Graphs {
 public:
  explicit Graphs(Bytes bytes) : in_(bytes), r_(1) {}

  void run() {
    if (in_.below(4) == 0) {
      wire();
    } else {
      in_.pick(kSeeds)(b_, r_);
      Damage(b_.graph, in_).run(in_.below(8));
    }
    Claims claims = claim(b_.graph);
    for (const Part& part : claims.parts) execute(part_graph(b_.graph, part), claims.reshapes);
  }

 private:
  void wire() {
    values_.push_back(b_.input("tokens"));
    values_.push_back(b_.input("other"));
    ids_ = b_.input("ids");
    for (int i = 0; i < 60 && !in_.done(); ++i) values_.push_back(step());
    for (int v : values_)
      if (b_.graph.values[v].consumers.empty() || in_.below(8) == 0) b_.output(v);
  }
  int pick() { return values_[values_.size() - 1 - static_cast<size_t>(in_.below(std::min<int>(6, static_cast<int>(values_.size()))))]; }
  int64_t width() { return kWidths[in_.below(6)]; }
  int matrix(bool quantized) {
    int64_t k = width(), n = width();
    if (!quantized) {
      std::vector<float> w(static_cast<size_t>(k * n), 0.f);
      w[0] = 1.f;
      return b_.constant({k, n}, w);
    }
    int w = b_.constant({k, n}, r_.weights(static_cast<int>(k), static_cast<int>(n), 0.5f));
    int64_t scales = in_.below(3) ? n : 1;
    Node axis;
    axis.ints["axis"] = in_.below(3);
    return b_.node("DequantizeLinear", {w, b_.constant({scales}, std::vector<float>(static_cast<size_t>(scales), 0.01f))}, axis);
  }
  std::vector<int64_t> shape() {
    switch (in_.below(6)) {
      case 0: return {0, 0, 4, in_.below(8)};
      case 1: return {0, -1, in_.below(6), 4};
      case 2: return {0, 0, 16};
      case 3: return {0, 0, -1};
      case 4: return {0, 0, in_.below(4), -1, 4};
      default: return {2, 3, 4, 4};
    }
  }
  // A bound or an axis.
  int edge() {
    switch (in_.below(10)) {
      case 8: return b_.constant({INT64_MAX});
      case 9: return b_.constant({INT64_MIN});
      default: return b_.constant({in_.below(24) - 4});
    }
  }
  int fill() { return b_.scalar(in_.below(2) ? -3.4028234663852886e38f : 0.f); }
  // Of positions: [heads, positions, size], or size before positions.
  int table() {
    const int64_t heads = 1 + in_.below(4), a = 1 + in_.below(9), b = 1 + in_.below(9);
    return b_.constant({heads, a, b}, r_.normals(static_cast<size_t>(heads * a * b)));
  }
  int pairs() {
    const int index = b_.input("pairs", {1, -1, -1});
    return in_.below(4) ? b_.node("Expand", {index, b_.constant({-1, in_.below(9), in_.below(9)})}) : index;
  }
  std::vector<int64_t> order() {
    switch (in_.below(6)) {
      case 4: return {0, 2, 1};
      case 5: return {2, 0, 1};
      case 0: return {0, 2, 1, 3};
      case 1: return {0, 2, 3, 1};
      case 2: return {0, 1, 3, 2};
      default: return {1, 0};
    }
  }

  int step() {
    Node n;
    switch (in_.below(34)) {
      case 0: case 1: case 2: return b_.node("MatMul", {pick(), matrix(true)});
      case 3: return b_.node("MatMul", {pick(), matrix(false)});
      case 4: case 5: return b_.fake_quantize(pick(), 0.05f, static_cast<uint8_t>(in_.below(255)));
      case 6: return b_.node("Add", {pick(), pick()});
      case 7: return b_.node("Add", {pick(), b_.constant({width()}, std::vector<float>(static_cast<size_t>(width()), 1.f))});
      case 8: return b_.node("Mul", {pick(), in_.below(2) ? pick() : b_.scalar(0.5f)});
      case 9: case 10: return b_.node("Reshape", {pick(), b_.constant(shape())});
      case 11: case 12: return b_.transpose(pick(), order());
      case 13: return b_.node("MatMul", {pick(), pick()});
      case 14: return b_.node("Softmax", {pick()});
      case 15: {
        int64_t w = width();
        return b_.node("LayerNormalization", {pick(), b_.constant({w}, std::vector<float>(static_cast<size_t>(w), 1.f))});
      }
      case 16: return b_.node("Gelu", {pick()});
      case 17: {
        int64_t w = width();
        return b_.node("Gather", {b_.constant({5, w}, r_.normals(static_cast<size_t>(5 * w))), ids_});
      }
      case 18: return b_.node("Unknown", {pick()});
      case 21: return b_.node("Slice", {pick(), edge(), edge(), edge(), b_.constant({1})});
      case 27: {
        n.ints["q_num_heads"] = n.ints["kv_num_heads"] = in_.below(5);
        return b_.node("Attention", {pick(), pick(), pick(), in_.below(2) ? pick() : -1}, n);
      }
      case 28: {
        n.ints["num_heads"] = in_.below(5);
        return b_.node("RotaryEmbedding", {pick(), pick(), pick()}, n);
      }
      case 29: return b_.node("GatherElements", {pick(), in_.below(4) ? pairs() : pick()}, with("axis", in_.below(5) - 1));
      case 30: return b_.node("Where", {in_.below(4) ? b_.input("condition") : pick(), in_.below(2) ? pick() : fill(), in_.below(2) ? pick() : fill()});
      case 31: return b_.node("Tile", {in_.below(2) ? table() : pick(), b_.constant({in_.below(3), 1, 1})});
      case 32: return b_.node("Expand", {pick(), b_.constant(shape())});
      case 33: return b_.node("MatMul", {pick(), table()});
      case 22: return b_.node("Squeeze", {pick(), edge()});
      case 23: return b_.node("Neg", {pick()});
      case 24: return b_.node("Concat", {pick(), pick()}, with("axis", in_.below(5) - 1));
      case 25: return b_.node("Gather", {pick(), b_.index(in_.below(5) - 2)}, with("axis", in_.below(5) - 1));
      case 26: {
        const std::vector<int> parts = b_.nodes("Split", {pick()}, static_cast<size_t>(1 + in_.below(3)), with("axis", in_.below(5) - 1));
        return parts[static_cast<size_t>(in_.below(static_cast<int>(parts.size())))];
      }
      case 19: return b_.token(pick(), in_.below(6) - 2, in_.below(2) != 0);
      default: return b_.node("Gemm", {pick(), matrix(true), b_.constant({width()}, std::vector<float>(static_cast<size_t>(width()), 1.f))});
    }
  }

  void execute(const Graph& g, const Reshapes& reshapes) {
    const Signature signature = signature_of(g);
    Program program = lower(g, match(g, reshapes), signature, in_.below(4) ? available_kernels().tables[0] : emulated_amx());
    program.integer_attention = in_.below(2) != 0;
    Executor executor(std::move(program), 2);
    const std::vector<Fit> fits = fits_of(executor.program(), signature.inputs.size());
    int64_t batch = in_.below(4), length = in_.below(40);
    for (int round = 0; round < 3; ++round) {
      Threads caller;
      caller.threads = 1;
      std::vector<std::vector<float>> data;
      std::vector<std::vector<int64_t>> places;
      std::vector<int64_t> ids(static_cast<size_t>(std::max<int64_t>(1, batch) * length), in_.below(7) - 1);
      for (const Fit& fit : fits) {
        std::vector<int64_t> shape = fit.shape(batch, length, in_);
        if (fit.indices) {
          caller.inputs.push_back({Type::kInt64, ids.data(), shape.size() == 2 ? shape : std::vector<int64_t>{batch, length}});
          continue;
        }
        if (fit.positions) {
          places.emplace_back();
          for (int64_t i = 0; i < length * length; ++i) places.back().push_back(r_.below(2 * fit.positions) - fit.positions);
          if (in_.below(16) == 15 && length) places.back()[0] = in_.below(3) ? fit.positions : INT64_MIN;
          caller.inputs.push_back({in_.below(8) ? Type::kInt64 : Type::kInt32, places.back().data(), shape});
          continue;
        }
        data.push_back(r_.normals(static_cast<size_t>(Array::count(shape)) + 1));
        for (float& x : data.back())
          if (fit.mask && r_.below(2)) x = -3.4028234663852886e38f;
        if (in_.below(16) == 15) data.back()[0] = NAN;
        caller.inputs.push_back({Type::kFloat, data.back().data(), shape});
      }
      try {
        executor.run(caller);
      } catch (const std::runtime_error&) {
        // Shapes that do not fit are refused.
      }
    }
  }

  // What an input of a program is to it, so that most runs come far.
  struct Fit {
    int width = 0;            // of tokens; 0: none that is known
    int positions = 0;        // of two tokens: of so many
    bool indices = false, mask = false, by_position = false;

    std::vector<int64_t> shape(int64_t batch, int64_t length, Bytes& in) const {
      int odd = in.below(12);
      if (odd == 11) return {length};
      if (indices) return odd == 10 ? std::vector<int64_t>{1, length} : std::vector<int64_t>{batch, length};
      if (mask) return {odd % 2 ? batch : 1, 1, odd == 10 ? length : 1, length};
      if (positions) return {1, length, odd == 10 ? 1 : length};
      if (by_position) return {odd % 2 ? batch : 1, 1, odd == 10 ? 1 : length, width};
      int64_t last = odd == 10 ? in.pick(kWidths) : width;
      return odd == 9 ? std::vector<int64_t>{length, last} : std::vector<int64_t>{odd == 8 ? 1 : batch, length, last};
    }
  };
  static std::vector<Fit> fits_of(const Program& p, size_t inputs) {
    std::vector<Fit> fits(inputs);
    for (const Step& s : p.steps) {
      if (s.kind == StepKind::kImport && s.tensor < kConstants) {
        fits[s.tensor].width = s.out.used() ? s.out.width : s.quantized.width;
        fits[s.tensor].by_position = s.by_position;
      }
      for (const Gathered& g : s.gathered) fits[g.tensor].indices = true;
      for (const AddedMask& m : s.masks)
        if (m.used() && m.tensor < kConstants) fits[m.tensor].mask = true;
      for (const PositionTerm* t : {&s.by_query, &s.by_key})
        if (t->used() && t->index < kConstants) fits[t->index].positions = p.tables[t->table].positions;
    }
    return fits;
  }

  Bytes in_;
  Builder b_;
  Numbers r_;
  std::vector<int> values_;
  int ids_ = -1;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Graphs(Bytes(data, size)).run();
  Damage::forget();
  return 0;
}

#ifdef OBERT_FUZZ_MAIN
// graph_fuzz ROUNDS SEED
int main(int argc, char** argv) {
  long rounds = argc > 1 ? std::atol(argv[1]) : 1000;
  Numbers r(static_cast<uint32_t>(argc > 2 ? std::atol(argv[2]) : 1));
  for (long i = 0; i < rounds; ++i) {
    std::vector<uint8_t> bytes(static_cast<size_t>(20 + r.below(200)));
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(r.below(256));
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%ld passed, 0 failed\n", rounds);
}
#endif
