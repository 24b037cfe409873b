#include "tail.h"

#include <algorithm>

#include "program.h"

namespace obert {
namespace {

std::vector<int> buffers(std::initializer_list<const Slice*> slices) {
  std::vector<int> found;
  for (const Slice* s : slices)
    if (s->used()) found.push_back(s->buffer);
  return found;
}

std::vector<int> read_by(const Step& s) { return buffers({&s.x, &s.residual, &s.factor, &s.key, &s.value, &s.cosine, &s.sine}); }

bool picked_alone(const Program& p, const Step& s) {
  const std::vector<int> read = read_by(s);
  return s.picked && std::all_of(read.begin(), read.end(), [&](int b) { return p.buffers[b].picked; });
}

}  // namespace

Tail tail_of(const Program& p) {
  Tail t;
  t.first = p.steps.size();
  while (t.first > 0 && picked_alone(p, p.steps[t.first - 1])) --t.first;
  std::vector<char> written(p.buffers.size(), 0);
  for (size_t i = t.first; i < p.steps.size(); ++i) {
    for (int b : read_by(p.steps[i]))
      if (!written[b] && std::find(t.reads.begin(), t.reads.end(), b) == t.reads.end()) t.reads.push_back(b);
    for (int b : buffers({&p.steps[i].out, &p.steps[i].quantized})) written[b] = 1;
  }
  return t;
}

}  // namespace obert
