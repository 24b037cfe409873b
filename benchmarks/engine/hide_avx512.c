/* Loaded before an ONNX Runtime whose cpuid and xgetbv instructions avx2_only.py has replaced by ud2: answers them as a
   processor would that has AVX2 and FMA, and none of AVX-512, AVX-VNNI and AMX. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))

static void answer(int number, siginfo_t* info, void* context) {
  (void)number, (void)info;
  greg_t* r = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* at = (const uint8_t*)r[REG_RIP];
  if (at[0] != 0x0f || at[1] != 0x0b) { /* somebody else's: let it happen again */
    signal(SIGILL, SIG_DFL);
    return;
  }
  if (at[2] == 0x90) { /* ud2, nop: xgetbv. The system keeps no mask and no 512-bit registers */
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"((uint32_t)r[REG_RCX]));
    r[REG_RAX] = low & ~(BIT(5) | BIT(6) | BIT(7));
    r[REG_RDX] = high;
    r[REG_RIP] += 3;
    return;
  }
  uint32_t leaf = (uint32_t)r[REG_RAX], part = (uint32_t)r[REG_RCX], a, b, c, d;
  __cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 7 && part == 0) {
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 */
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                                 /* and its extensions */
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));              /* AVX-512, AMX */
  }
  if (leaf == 7 && part == 1) a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)), d = 0; /* AVX-VNNI, bfloat16, AVX-IFMA */
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, 0);
}
