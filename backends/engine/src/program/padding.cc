#include "padding.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "prepare.h"
#include "program.h"

namespace obert {
namespace {

// What a mask adds at most to shut a key out for good: e^ of it is 0 beside any key that it does not shut out. Masks of
// -10000 count on scores being small, and are left alone.
constexpr float kShut = -1e30f;

// One more than the last key that counts, 0 where none does.
size_t last_key(const float* row, size_t length) {
  while (length > 0 && row[length - 1] <= kShut) --length;
  return length;
}

// Tokens of a sequence up to the last key of any query and head. All of them where a query among these has no key:
// its weights are then the same for every key.
size_t kept_by(const Mask& mask, size_t sequence, size_t heads, size_t length) {
  const size_t rows = mask.query ? length : 1;
  if (!mask.head) heads = 1;
  std::vector<char> empty(length, 0);
  size_t kept = 0;
  for (size_t head = 0; head < heads; ++head)
    for (size_t row = 0; row < rows; ++row) {
      const size_t last = last_key(mask.data + sequence * mask.batch + head * mask.head + row * mask.query, length);
      kept = std::max(kept, last);
      if (last == 0) empty[row] = 1;
    }
  const auto among = empty.begin() + static_cast<std::ptrdiff_t>(std::max<size_t>(1, kept));
  return kept == 0 || std::find(empty.begin(), among, 1) != among ? length : kept;
}

}  // namespace

bool may_drop_padding(const Program& p) {
  bool attends = false;
  for (const Output& output : p.outputs)
    if (!output.picked) return false;
  for (const Step& s : p.steps) {
    if (s.kind == StepKind::kImport && !s.by_position) return false;
    if (s.kind != StepKind::kAttention) continue;
    if (!s.masks[0].used() || s.masks[1].used()) return false;
    attends = true;
  }
  return attends;
}

void drop_padding(const Program& p, Run& run) {
  std::vector<size_t> kept(run.batch, 1);
  std::map<const float*, std::vector<size_t>> known;   // layers share their mask
  for (size_t i = 0; i < p.steps.size(); ++i) {
    const Step& s = p.steps[i];
    if (s.kind == StepKind::kPick)
      for (size_t& tokens : kept) tokens = std::max(tokens, s.token_in(run.length) + 1);
    if (s.kind != StepKind::kAttention) continue;
    const Mask& mask = run.masks[i][0];
    auto [found, fresh] = known.try_emplace(mask.data);
    if (fresh)
      for (size_t b = 0; b < run.batch; ++b)
        found->second.push_back(kept_by(mask, b, static_cast<size_t>(s.x.width / s.head_dim), run.length));
    for (size_t b = 0; b < run.batch; ++b) kept[b] = std::max(kept[b], found->second[b]);
  }
  if (std::all_of(kept.begin(), kept.end(), [&](size_t tokens) { return tokens == run.length; })) return;
  run.order.resize(run.batch);
  std::iota(run.order.begin(), run.order.end(), size_t{0});
  std::stable_sort(run.order.begin(), run.order.end(), [&](size_t a, size_t b) { return kept[a] > kept[b]; });
  for (size_t b : run.order) run.kept.push_back(kept[b]);
}

}  // namespace obert
