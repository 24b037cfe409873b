// Padding at the ends of sequences, where nobody can tell that it was left out.
//
// Keys that a mask shuts out add exactly 0 to a softmax, and where one token of each sequence is all that is handed out,
// what lies behind the last key that counts is read by nobody. Such sequences are run as long as they are, and
// not as long as the longest of their batch, or as what a caller padded them to.
#pragma once

namespace obert {

struct Program;
struct Run;

// Whether a program hands out single tokens alone, reads nothing of tokens but their indices and masks, and masks every
// attention.
bool may_drop_padding(const Program& program);

// Fills in Run::order and Run::kept from the masks; leaves them empty where all tokens count.
void drop_padding(const Program& program, Run& run);

}  // namespace obert
