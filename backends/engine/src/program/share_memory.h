// Where buffers lie in the arena.
#pragma once

namespace obert {

struct Program;

// Gives every buffer its offset, and the arena its size. Buffers that are not in use at the same step share memory:
// in the order of their birth they take the smallest free piece that fits, or the largest, which then grows.
void share_memory(Program& program);

}  // namespace obert
