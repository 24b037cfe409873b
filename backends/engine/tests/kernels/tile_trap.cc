#include "tile_trap.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "tile_machine.h"

namespace obert {
namespace {

[[noreturn]] void give_up(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  _exit(1);
}

// One instruction with a VEX prefix of three bytes, opcode map 0F38.
class Instruction {
 public:
  explicit Instruction(mcontext_t& context) : context_(context) {
    at_ = reinterpret_cast<const uint8_t*>(context.gregs[REG_RIP]);
    const uint8_t vex = *at_++, first = *at_++, second = *at_++;
    if (vex != 0xc4 || (first & 31) != 2) give_up("an instruction outside of the map of AMX");
    high_reg_ = first & 0x80 ? 0 : 8, high_index_ = first & 0x40 ? 0 : 8, high_base_ = first & 0x20 ? 0 : 8;
    third_ = ~(second >> 3) & 15;
    prefix_ = second & 3;
    if (second & 0x84) give_up("an AMX instruction with W or L set");
    opcode_ = *at_++;
    mod_rm_ = *at_++;
    if (mod_rm_ >> 6 != 3) memory();
  }

  void run() {
    const int reg = (mod_rm_ >> 3 & 7) + high_reg_, rm = (mod_rm_ & 7) + high_base_;
    const bool in_memory = mod_rm_ >> 6 != 3;
    constexpr int kNone = 0, kRepeat = 2, kNotEqual = 3;  // what the prefix stands for: none, F3, F2
    if (opcode_ == 0x49 && prefix_ == kNone && in_memory && reg == 0) {
      TileConfig config;
      std::memcpy(&config, pointer(), sizeof config);
      machine_configure(config);
    } else if (opcode_ == 0x49 && prefix_ == kNone && mod_rm_ == 0xc0) {
      machine_release();
    } else if (opcode_ == 0x49 && prefix_ == kNotEqual && !in_memory && (mod_rm_ & 7) == 0) {
      machine_zero(reg);
    } else if (opcode_ == 0x4b && prefix_ == kNotEqual && in_memory && has_sib_) {
      machine_load(reg, pointer(), stride_);
    } else if (opcode_ == 0x4b && prefix_ == kRepeat && in_memory && has_sib_) {
      machine_store(reg, pointer(), stride_);
    } else if (opcode_ == 0x5e && prefix_ == kRepeat && !in_memory) {
      machine_dot(reg, rm, third_);
    } else if (opcode_ == 0x5c && prefix_ == kRepeat && !in_memory) {
      machine_dot_bf16(reg, rm, third_);
    } else {
      give_up("an AMX instruction that the kernels do not use");
    }
    context_.gregs[REG_RIP] = reinterpret_cast<greg_t>(at_);
  }

 private:
  int64_t general(int number) const {
    static constexpr int kPlaces[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context_.gregs[kPlaces[number]];
  }
  void* pointer() const { return reinterpret_cast<void*>(address_); }

  template <class T>
  int64_t displacement() {
    T value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  // The address without the index, which of a tile is the stride of its rows.
  void memory() {
    const int mod = mod_rm_ >> 6, rm = mod_rm_ & 7;
    bool based = true;
    int base = rm + high_base_;
    if (rm == 4) {
      has_sib_ = true;
      const uint8_t sib = *at_++;
      const int index = (sib >> 3 & 7) + high_index_;
      stride_ = index == 4 ? 0 : static_cast<size_t>(general(index)) << (sib >> 6);
      base = (sib & 7) + high_base_;
      based = mod != 0 || (sib & 7) != 5;
    }
    const bool relative = rm == 5 && mod == 0;
    if (based && !relative) address_ = general(base);
    if (mod == 1) address_ += displacement<int8_t>();
    else if (mod == 2 || !based || relative) address_ += displacement<int32_t>();
    if (relative) address_ += reinterpret_cast<int64_t>(at_);
  }

  mcontext_t& context_;
  const uint8_t* at_;
  int high_reg_, high_index_, high_base_, third_, prefix_;
  uint8_t opcode_, mod_rm_;
  bool has_sib_ = false;
  int64_t address_ = 0;
  size_t stride_ = 0;
};

void handle(int, siginfo_t*, void* context) {
  try {
    Instruction(static_cast<ucontext_t*>(context)->uc_mcontext).run();
  } catch (const std::logic_error& e) {
    give_up(e.what());
  }
}

}  // namespace

bool trap_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx);
  if (edx >> 24 & 1) return false;
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

}  // namespace obert

#else
namespace obert {
bool trap_tiles() { return false; }
}  // namespace obert
#endif
