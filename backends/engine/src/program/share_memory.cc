#include "share_memory.h"

#include <algorithm>
#include <vector>

#include "program.h"

namespace obert {

void share_memory(Program& p) {
  struct Piece {
    size_t bytes;
    bool free;
  };
  std::vector<Piece> pieces;
  std::vector<int> piece_of(p.buffers.size(), -1), last(p.buffers.size(), -1);
  auto each = [&](const Step& s, auto&& visit) {
    for (const Slice* x : {&s.x, &s.residual, &s.factor, &s.key, &s.value, &s.cosine, &s.sine, &s.out, &s.quantized})
      if (x->used()) visit(x->buffer);
  };
  for (size_t i = 0; i < p.steps.size(); ++i) each(p.steps[i], [&](int b) { last[b] = static_cast<int>(i); });
  for (size_t i = 0; i < p.steps.size(); ++i) {
    each(p.steps[i], [&](int b) {
      if (piece_of[b] >= 0) return;
      size_t need = p.buffers[b].bytes;
      int best = -1;
      for (int i = 0; i < static_cast<int>(pieces.size()); ++i) {
        if (!pieces[i].free) continue;
        if (best < 0) { best = i; continue; }
        bool fits = pieces[i].bytes >= need, best_fits = pieces[best].bytes >= need;
        if (fits ? (!best_fits || pieces[i].bytes < pieces[best].bytes)
                 : (!best_fits && pieces[i].bytes > pieces[best].bytes)) best = i;
      }
      if (best < 0) {
        best = static_cast<int>(pieces.size());
        pieces.push_back({0, true});
      }
      pieces[best].free = false;
      pieces[best].bytes = std::max(pieces[best].bytes, need);
      piece_of[b] = best;
    });
    each(p.steps[i], [&](int b) {
      if (last[b] == static_cast<int>(i)) pieces[piece_of[b]].free = true;
    });
  }
  std::vector<size_t> offsets;
  size_t total = 0;
  for (const Piece& piece : pieces) {
    offsets.push_back(total);
    total += piece.bytes;
  }
  for (size_t b = 0; b < p.buffers.size(); ++b)
    if (piece_of[b] >= 0) p.buffers[b].offset = offsets[piece_of[b]];
  p.arena_bytes = total;
}

}  // namespace obert
