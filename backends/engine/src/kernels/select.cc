// Which tables this processor can run. Compiled without instruction-set flags: it runs everywhere.
#include "select.h"

#include <cstdlib>
#include <cstring>

#include "tables.h"
#ifdef OBERT_TRAP_AMX
#include "tile_trap.h"
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace obert {
namespace {

#if defined(__x86_64__)
// Bits that not every compiler's __builtin_cpu_supports knows by name.
struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  Leaf(unsigned leaf, unsigned part) { __get_cpuid_count(leaf, part, &eax, &ebx, &ecx, &edx); }
};
#endif

struct Entry {
  const Kernels* table;
  uint32_t needs;
};

// Best first. A table the library was not built with is left out by its macro.
const Entry kEntries[] = {
#ifdef OBERT_HAVE_AMX
    {&kAmxKernels, kIsaAmxInt8 | kIsaAmxBf16 | kIsaAvx512Vnni},
#endif
#ifdef OBERT_HAVE_AVX512VNNI
    {&kAvx512VnniKernels, kIsaAvx512Vnni},
#endif
#ifdef OBERT_HAVE_AVXVNNI
    {&kAvxVnniKernels, kIsaAvxVnni | kIsaAvx2},
#endif
#ifdef OBERT_HAVE_AVX2
    {&kAvx2Kernels, kIsaAvx2},
#endif
#ifdef OBERT_HAVE_NEONI8MM
    {&kNeonI8mmKernels, kIsaNeonI8mm | kIsaNeonDot},
#endif
#ifdef OBERT_HAVE_NEONDOT
    {&kNeonDotKernels, kIsaNeonDot},
#endif
    {&kPortableKernels, 0},
};
constexpr size_t kCount = sizeof kEntries / sizeof *kEntries;

struct Chosen {
  const Kernels* tables[kCount];
  size_t count;
  explicit Chosen(const char* only) : tables{}, count(select_kernels(detect_isa(only), only, tables)) {}
};

bool named(const char* only) { return only && *only; }

#ifdef OBERT_TRAP_AMX
uint32_t usable_tiles() { return trap_tiles() ? kIsaAmxInt8 | kIsaAmxBf16 : 0; }
#elif defined(OBERT_HAVE_AMX) && defined(__linux__)
// What multiplies tiles, where the processor has their registers, the system saves them and this process may
// use them.
uint32_t usable_tiles() {
  const Leaf features(7, 0);
  if (!(features.edx >> 24 & 1)) return 0;      // AMX-TILE
  if (!(Leaf(1, 0).ecx & 1u << 27)) return 0;   // XGETBV
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low >> 17 & 3) != 3) return 0;           // XTILECFG, XTILEDATA
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 0;
  return (features.edx >> 25 & 1 ? kIsaAmxInt8 : 0u) | (features.edx >> 22 & 1 ? kIsaAmxBf16 : 0u);
}
#endif

}  // namespace

uint32_t detect_isa(const char* only) {
  uint32_t bits = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) bits |= kIsaAvx2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni"))
    bits |= kIsaAvx512Vnni;
  if (Leaf(7, 1).eax & 1u << 4) bits |= kIsaAvxVnni;
#if defined(OBERT_HAVE_AMX) && defined(__linux__)
  // Asking has an effect on the whole process: only where tiles may be chosen.
  if (!named(only) || !std::strcmp(only, "amx")) bits |= usable_tiles();
#endif
#elif defined(__aarch64__) && defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) bits |= kIsaNeonDot;
#ifdef HWCAP2_I8MM
  if (getauxval(AT_HWCAP2) & HWCAP2_I8MM) bits |= kIsaNeonI8mm;
#endif
#elif defined(__aarch64__) && defined(__APPLE__)
  bits |= kIsaNeonDot;  // every Apple silicon
#endif
  (void)only;
  return bits;
}

size_t select_kernels(uint32_t isa, const char* only, const Kernels** tables) {
  size_t count = 0;
  for (const Entry& e : kEntries) {
    if ((e.needs & isa) != e.needs) continue;
    if (named(only) && std::strcmp(only, e.table->name) != 0) continue;
    tables[count++] = e.table;
  }
  return count;
}

KernelSet available_kernels() {
  static const Chosen chosen(std::getenv("OBERT_FORCE_ISA"));
  return {chosen.tables, chosen.count};
}

const Kernels* find_kernels(const char* name) {
  const Kernels* tables[kCount];
  return select_kernels(detect_isa(name), name, tables) ? tables[0] : nullptr;
}

}  // namespace obert
