#include "prepare.h"

#include "padding.h"

#include <stdexcept>
#include <string>

namespace obert {
namespace {

std::string text(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

class Preparation {
 public:
  Preparation(const Program& p, Caller& caller) : p_(p), caller_(caller) {
    run_.spread.resize(p.steps.size());
    run_.places.resize(p.steps.size());
    run_.masks.resize(p.steps.size());
    run_.pairs.resize(p.steps.size());
  }

  Run prepare() {
    find_tokens();
    check_tokens();
    bool none = run_.batch == 0 || run_.length == 0;
    for (size_t i = 0; i < p_.steps.size() && !none; ++i) {
      if (p_.steps[i].kind == StepKind::kImport) fit(i);
      for (const Gathered& g : p_.steps[i].gathered) check_rows(g);
      if (p_.steps[i].kind != StepKind::kAttention) continue;
      for (int m : {0, 1})
        if (p_.steps[i].masks[m].used()) mask(i, m);
      const auto heads = static_cast<size_t>(p_.steps[i].x.width / p_.steps[i].head_dim);
      if (p_.steps[i].by_query.used()) run_.pairs[i][0] = pairs(p_.steps[i].by_query, heads);
      if (p_.steps[i].by_key.used()) run_.pairs[i][1] = pairs(p_.steps[i].by_key, heads);
    }
    for (size_t i = 0; i < p_.outputs.size(); ++i) {
      std::vector<int64_t> shape = run_.leading;
      if (p_.outputs[i].picked) shape.pop_back();
      if (p_.outputs[i].joined) shape = {static_cast<int64_t>(count(shape, shape.size()))};
      shape.push_back(p_.outputs[i].width);
      run_.outputs.push_back(static_cast<float*>(caller_.output(static_cast<int>(i), shape)));
    }
    if (p_.drops_padding && !none) drop_padding(p_, run_);
    return std::move(run_);
  }

 private:
  const Tensor& input(int index) {
    if (run_.inputs.size() <= static_cast<size_t>(index)) {
      run_.inputs.resize(index + 1);
      run_.read.resize(index + 1, 0);
    }
    if (!run_.read[index]) {
      run_.inputs[index] = caller_.input(index);
      run_.read[index] = 1;
    }
    return run_.inputs[index];
  }

  // See Step::tensor.
  Tensor constant_or_input(int index) {
    if (index < kConstants) return input(index);
    const ConstantTensor& c = p_.constants[index - kConstants];
    return {Type::kFloat, c.data.data(), c.shape};
  }

  static size_t count(const std::vector<int64_t>& shape, size_t dimensions) {
    size_t n = 1;
    for (size_t i = 0; i < dimensions; ++i) n *= static_cast<size_t>(shape[i]);
    return n;
  }

  void find_tokens() {
    bool found = false;
    for (const Step& s : p_.steps) {
      for (const Gathered& g : s.gathered) tokens_of(input(g.tensor), input(g.tensor).shape.size(), found);
      if (s.kind != StepKind::kImport || s.by_position) continue;
      const Tensor& t = input(s.tensor);
      int width = s.out.used() ? s.out.width : s.quantized.width;
      if (t.shape.empty() || t.shape.back() != width)
        throw std::runtime_error("an input of shape " + text(t.shape) + " was expected to have " + std::to_string(width) +
                                 " features");
      tokens_of(t, t.shape.size() - 1, found);
    }
    if (!found) throw std::runtime_error("the part reads no tokens");
    if (p_.sequence_rank == 3 && run_.leading.size() != 2)
      throw std::runtime_error("attention, or a token of each sequence, was expected of [batch, sequence, features], found tokens of shape " + text(run_.leading));
    bool sequences = run_.leading.size() == 2;
    run_.batch = sequences ? static_cast<size_t>(run_.leading[0]) : 1;
    run_.length = sequences ? static_cast<size_t>(run_.leading[1]) : count(run_.leading, run_.leading.size());
  }

  // What is there once for the whole batch is repeated: it does not say how large that is.
  void tokens_of(const Tensor& t, size_t rank, bool& found) {
    bool repeats = rank == 0 || t.shape[0] == 1;
    if (found && (rank < run_.leading.size() || (rank == run_.leading.size() && repeats))) return;
    found = true;
    run_.leading.assign(t.shape.begin(), t.shape.begin() + static_cast<std::ptrdiff_t>(rank));
  }

  void check_tokens() const {
    const auto length = static_cast<int64_t>(run_.length);
    for (const Step& s : p_.steps)
      if (s.kind == StepKind::kPick && (s.token < -length || s.token >= length))
        throw std::runtime_error("token " + std::to_string(s.token) + " of each sequence is read, found sequences of " +
                                 std::to_string(length) + " tokens");
  }

  // Rows for each place in a sequence, of one sequence or of all; dimensions of 1 between are of heads.
  void place(size_t step) {
    const Step& s = p_.steps[step];
    const Tensor t = constant_or_input(s.tensor);
    const auto width = static_cast<size_t>(s.out.width);
    const size_t rows = t.shape.empty() ? 0 : count(t.shape, t.shape.size() - 1);
    const bool one = rows == run_.length, each = rows == run_.batch * run_.length && static_cast<size_t>(t.shape[0]) == run_.batch;
    if (t.shape.size() < 2 || static_cast<size_t>(t.shape.back()) != width || t.type != Type::kFloat || (!one && !each))
      throw std::runtime_error("cosines, sines or weights of tokens of shape " + text(t.shape) + " were expected to have " + std::to_string(width) +
                               " for each of " + std::to_string(run_.length) + " tokens");
    run_.places[step] = {static_cast<const float*>(t.data), one ? 0 : run_.length};
  }

  // An input with fewer batches than the others is repeated.
  void fit(size_t step) {
    if (p_.steps[step].by_position) return place(step);
    const Step& s = p_.steps[step];
    const Tensor& t = input(s.tensor);
    std::vector<int64_t> leading(t.shape.begin(), t.shape.end() - 1);
    if (leading == run_.leading) return;
    size_t tokens = count(leading, leading.size());
    bool repeats = tokens == run_.length && s.out.used() &&
                   (leading.size() == 1 || (leading.size() == 2 && leading[0] == 1 && run_.leading.size() == 2));
    if (!repeats)
      throw std::runtime_error("inputs were expected to have the same tokens, found " + text(leading) + " and " + text(run_.leading));
    size_t size = tokens * static_cast<size_t>(s.out.width);
    std::vector<float>& all = run_.spread[step];
    all.reserve(size * run_.batch);
    const auto* data = static_cast<const float*>(t.data);
    for (size_t b = 0; b < run_.batch; ++b) all.insert(all.end(), data, data + size);
  }

  void check_rows(const Gathered& g) {
    const Tensor& t = input(g.tensor);
    bool repeats = t.shape.size() == 2 && run_.leading.size() == 2 && t.shape[0] == 1 && t.shape[1] == run_.leading[1];
    if (t.shape != run_.leading && !repeats)
      throw std::runtime_error("indices were expected for tokens of shape " + text(run_.leading) + ", found " + text(t.shape));
    if (t.type != Type::kInt64 && t.type != Type::kInt32)
      throw std::runtime_error("indices were expected as int64 or int32");
    auto rows = static_cast<int64_t>(p_.rows[g.rows].count());
    size_t n = count(t.shape, t.shape.size());
    for (size_t i = 0; i < n; ++i) {
      int64_t v = t.type == Type::kInt32 ? static_cast<const int32_t*>(t.data)[i] : static_cast<const int64_t*>(t.data)[i];
      if (v < -rows || v >= rows)
        throw std::runtime_error("an index was expected from " + std::to_string(-rows) + " to " + std::to_string(rows - 1) +
                                 ", found " + std::to_string(v));
    }
  }

  void mask(size_t step, int which) {
    const Step& s = p_.steps[step];
    const AddedMask& from = s.masks[which];
    const Tensor t = constant_or_input(from.tensor);
    if (t.type != Type::kFloat && t.type != Type::kBool) throw std::runtime_error("a mask was expected in float32, or of booleans");
    auto heads = static_cast<size_t>(s.x.width / s.head_dim);
    size_t most[4] = {run_.batch, heads, run_.length, run_.length};
    size_t shape[4] = {1, 1, 1, 1};
    bool fine = t.shape.size() <= 4;
    for (size_t i = 0; fine && i < t.shape.size(); ++i)
      shape[4 - t.shape.size() + i] = static_cast<size_t>(t.shape[i]);
    for (int i = 0; i < 4; ++i) fine = fine && (shape[i] == most[i] || (shape[i] == 1 && i < 3));
    if (!fine)
      throw std::runtime_error("a mask of shape " + text(t.shape) + " does not fit scores of " +
                               text({static_cast<int64_t>(most[0]), static_cast<int64_t>(heads),
                                     static_cast<int64_t>(run_.length), static_cast<int64_t>(run_.length)}));
    Mask& m = run_.masks[step][which];
    m.data = static_cast<const float*>(t.data);
    if (t.type == Type::kBool) {
      auto [known, fresh] = run_.added.try_emplace({from.tensor, from.if_true, from.if_false});
      if (fresh) known->second = added(static_cast<const uint8_t*>(t.data), count(t.shape, t.shape.size()), from.if_true, from.if_false);
      m.data = known->second.data();
    }
    m.query = shape[2] == 1 ? 0 : shape[3];
    m.head = shape[1] == 1 ? 0 : shape[2] * shape[3];
    m.batch = shape[0] == 1 ? 0 : shape[1] * shape[2] * shape[3];
  }

  // With dimensions of 1 in front.
  PairIndex pairs(const PositionTerm& term, size_t heads) {
    const int positions = p_.tables[term.table].positions;
    if (term.copies > 0 && static_cast<size_t>(term.copies) != run_.batch * heads)
      throw std::runtime_error("relative positions for " + std::to_string(run_.batch * heads) + " heads of all sequences were expected, found " +
                               std::to_string(term.copies));
    auto [known, fresh] = run_.columns.try_emplace({term.index, positions});
    if (fresh) known->second = columns(pair_tensor(term.index), positions, term.spread ? run_.batch * heads : 1);
    return {known->second.data(), run_.length};
  }

  Tensor pair_tensor(int index) {
    if (index < kConstants) return input(index);
    const ConstantIndex& c = p_.indices[index - kConstants];
    return {Type::kInt64, c.data.data(), c.shape};
  }

  // Of the first of so many copies.
  std::vector<int32_t> columns(const Tensor& t, int positions, size_t copies) const {
    const size_t length = run_.length, rank = t.shape.size();
    if (t.type != Type::kInt64 && t.type != Type::kInt32) throw std::runtime_error("relative positions were expected as int64 or int32");
    if (rank < 2 || static_cast<size_t>(t.shape[rank - 2]) != length || static_cast<size_t>(t.shape[rank - 1]) != length ||
        count(t.shape, rank) != length * length * copies)
      throw std::runtime_error("relative positions of shape " + text(t.shape) + " were expected for each two of " + std::to_string(length) + " tokens");
    std::vector<int32_t> all(length * length);
    for (size_t i = 0; i < all.size(); ++i) {
      int64_t v = t.type == Type::kInt32 ? static_cast<const int32_t*>(t.data)[i] : static_cast<const int64_t*>(t.data)[i];
      if (v < -positions || v >= positions)
        throw std::runtime_error("a relative position was expected from " + std::to_string(-positions) + " to " + std::to_string(positions - 1) +
                                 ", found " + std::to_string(v));
      all[i] = static_cast<int32_t>(v < 0 ? v + positions : v);
    }
    return all;
  }

  const Program& p_;
  Caller& caller_;
  Run run_;
};

}  // namespace

std::vector<float> added(const uint8_t* mask, size_t count, float if_true, float if_false) {
  std::vector<float> floats(count);
  for (size_t i = 0; i < count; ++i) floats[i] = mask[i] ? if_true : if_false;
  return floats;
}

Run prepare(const Program& program, Caller& caller) { return Preparation(program, caller).prepare(); }

}  // namespace obert
