// The steps of a program over some sequences of a batch, as one of the threads that share them.
#pragma once
#include <string>
#include <vector>

#include "prepare.h"
#include "program.h"
#include "sharing.h"

namespace obert {

// Which sequences, in the order of the run, with how many tokens each in the buffers of `memory`: arena_bytes for each
// panel of them.
struct Sequences {
  size_t first = 0, count = 0, tokens = 0;
  uint8_t* memory = nullptr;

  size_t panels() const { return panels_of(count * tokens); }
};

class Group {
 public:
  // `progress` is shared by all `threads`, null where one does it all.
  Group(const Program& p, const Run& run, const Sequences& part, Progress* progress = nullptr, size_t threads = 1, size_t thread = 0);

  // Takes part in the steps first .. last until they are done.
  void go(size_t first, size_t last);
  // What went wrong in tasks of this thread that others waited for.
  const std::string& error() const { return sharing_.error(); }
  // Copies the group's tokens in these buffers, one of each sequence, into the memory of all sequences.
  void carry(const std::vector<int>& buffers, uint8_t* to) const;

 private:
  struct Tokens {
    size_t count, panels;
    explicit Tokens(size_t n) : count(n), panels(panels_of(n)) {}
  };
  struct Cut {
    size_t panel;
    int begin, end;   // rows
  };

  // Panels lie one after another, each with all buffers, so that what threads do to theirs never touches another's,
  // however far apart in the program they are.
  uint8_t* at(uint8_t* memory, int buffer, size_t panel) const {
    return memory + panel * p_.arena_bytes + p_.buffers[buffer].offset;
  }
  float* floats(const Slice& s, size_t panel) const {
    if (!s.used()) return nullptr;
    return reinterpret_cast<float*>(at(memory_, s.buffer, panel)) + static_cast<size_t>(s.column) * kPanel;
  }
  uint8_t* bytes(const Slice& s, size_t panel) const {
    return s.used() ? at(memory_, s.buffer, panel) + static_cast<size_t>(s.column) * kPanel : nullptr;
  }
  // Dword `row` of a token, of float buffers and uint8 buffers alike.
  uint32_t* dword(uint8_t* memory, int buffer, size_t token, size_t row) const {
    return reinterpret_cast<uint32_t*>(at(memory, buffer, token / kPanel)) + row * kPanel + token % kPanel;
  }
  size_t dwords(int buffer) const { return p_.buffers[buffer].bytes / (kPanel * sizeof(uint32_t)); }
  int tokens_in(size_t panel) const;
  int groups_in(size_t panel) const { return (tokens_in(panel) + kGroup - 1) / kGroup; }
  // Where token i of the group lies in the inputs of the run.
  size_t outside(size_t i) const { return run_.sequence(first_ + i / length_) * run_.length + i % length_; }

  // By step: whether threads do their panels of it without the others'.
  static std::vector<char> steps_apart(const Program& p, bool apart);
  void compute(size_t step);
  void import(const Step& s, size_t step);
  void import_places(const Step& s, const Places& places);
  void gather(const Step& s);
  void pick(const Step& s);
  void write(const Step& s);
  void product(const Step& s);
  void pointwise(const Step& s);
  void layer_norm(const Step& s);
  void rotate(const Step& s);
  void attention(const Step& s, size_t step);
  // What relative positions add to the scores of that head of `a`, with its mask, in the place of the mask.
  void relative_scores(Attention& a, const Step& s, size_t step, size_t head, float* sum, void* scratch) const;
  void weigh_tokens(const Step& s);
  void dequantize(const Step& s);
  Epilogue epilogue(const Step& s, size_t panel) const;
  int rows_of_task(int rows) const;
  // Pieces of `size` rows of every panel.
  template <class F>
  void each_cut(int rows, int size, const F& f);

  const Program& p_;
  const Kernels& k_;
  const Run& run_;
  const size_t first_, sequences_, length_;
  const Tokens all_, picked_;
  Tokens now_;                 // those of the step
  uint8_t* const memory_;
  const size_t threads_;
  const bool apart_;           // threads take panels of their own, and not rows of every panel
  Sharing sharing_;
};

}  // namespace obert
