// Compiled AMX code on a processor without AMX: its instructions raise SIGILL, and the handler decodes
// them and does on the registers of tile_machine.h what they say. So the very code that a processor
// with AMX would run is tested where there is none, at some microseconds an instruction.
#pragma once

namespace obert {

// From here on this process emulates AMX. False where it cannot be: other systems than Linux on
// x86-64, and processors that have AMX and would run some of the instructions themselves. An
// instruction that the processor would refuse ends the process with a message.
bool trap_tiles();

}  // namespace obert
