// Attention of one head over one sequence. Include after maths.h and quantize.h.
//
// With queries in lanes both products of attention_softmax.h are the same tile: rows of `a` are broadcast element by
// element against vectors of `b`, so that no shuffle and no horizontal sum occurs. A tile of kTile x 2 vectors keeps the
// multiply pipes busy (2 loads and kTile broadcasts for 2 kTile multiplications) and fits the registers. Queries go in
// blocks of 2 kLanes; their scores over all keys stay in the first- or second-level cache.
#pragma once
#include "attention_layout.h"
#include "attention_products.h"
#include "attention_softmax.h"
#include "attention_floats.h"
#include "attention_few.h"
#include "attention_codes.h"

namespace obert {
namespace {

void attention(const Attention& a) {
  if (a.q_codes) {
    if constexpr (kHasDot2)
      if (!are_few(a) && codes_fit(a)) return attend(a, CodeProducts(a));
    return attention(in_floats(a));
  }
  if (are_few(a)) return attend_few(a);
  attend(a, FloatProducts(a));
}

size_t attention_scratch(int length, int head_dim) {
  const size_t floats = FloatScratch(length, head_dim).floats, codes = CodeScratch(length, head_dim).floats;
  return (floats > codes ? floats : codes) * sizeof(float);
}

}  // namespace
}  // namespace obert
