// The choice of tables, for processors that are not at hand too.
#include <cstring>

#include "check.h"
#include "select.h"

using namespace obert;

int main() {
  const Kernels* tables[kMaxTables];
  size_t n = select_kernels(0, nullptr, tables);
  CHECK(n == 1 && !std::strcmp(tables[0]->name, "portable"), "a bare processor runs portable");
  n = select_kernels(0xffffffffu, nullptr, tables);
  CHECK(n >= 1 && !std::strcmp(tables[n - 1]->name, "portable"), "portable is last");
  CHECK(select_kernels(0xffffffffu, "portable", tables) == 1, "a name leaves one");
  CHECK(select_kernels(0xffffffffu, "no such set", tables) == 0, "an unknown name leaves none");
#if defined(__x86_64__)
  n = select_kernels(kIsaAvx2, nullptr, tables);
  CHECK(n == 2 && !std::strcmp(tables[0]->name, "avx2"), "AVX2 comes before portable");
  n = select_kernels(kIsaAvx2 | kIsaAvx512Vnni, nullptr, tables);
  CHECK(n == 3 && !std::strcmp(tables[0]->name, "avx512vnni"), "AVX-512 VNNI comes before AVX2");
  n = select_kernels(kIsaAvx2 | kIsaAvxVnni, nullptr, tables);
  CHECK(n == 2 || !std::strcmp(tables[0]->name, "avxvnni"), "AVX-VNNI comes before AVX2");
  CHECK(select_kernels(kIsaAvx2, "avx512vnni", tables) == 0, "a set the processor lacks is not forced on it");
  // A library may be built without AMX.
  const uint32_t with_amx = kIsaAvx2 | kIsaAvx512Vnni | kIsaAmxInt8 | kIsaAmxBf16;
#ifdef OBERT_HAVE_AMX
  for (const char* none : {static_cast<const char*>(nullptr), ""}) {
    n = select_kernels(with_amx, none, tables);
    CHECK(n == 4 && !std::strcmp(tables[0]->name, "amx"), "AMX comes before AVX-512 VNNI");
  }
  CHECK(select_kernels(with_amx, "amx", tables) == 1 && !std::strcmp(tables[0]->name, "amx"), "AMX by its name");
  for (uint32_t one : {kIsaAmxInt8, kIsaAmxBf16}) {
    n = select_kernels(with_amx & ~one, nullptr, tables);
    CHECK(n == 3 && !std::strcmp(tables[0]->name, "avx512vnni"), "AMX needs both its products");
  }
#endif
  CHECK(select_kernels(kIsaAvx2 | kIsaAvx512Vnni, "amx", tables) == 0, "AMX is not forced on a processor without");
  CHECK(select_kernels(kIsaAmxInt8 | kIsaAmxBf16, "amx", tables) == 0, "AMX needs AVX-512 for everything else");
  CHECK(!(detect_isa("avx2") & (kIsaAmxInt8 | kIsaAmxBf16)), "tiles are asked for only where they are wanted");
#elif defined(__aarch64__)
  n = select_kernels(kIsaNeonDot, nullptr, tables);
  CHECK(n == 2 && !std::strcmp(tables[0]->name, "neondot"), "dot products come before portable");
  n = select_kernels(kIsaNeonDot | kIsaNeonI8mm, nullptr, tables);
  CHECK(n == 2 || !std::strcmp(tables[0]->name, "neoni8mm"), "mixed dot products come first");
#endif
  CHECK(find_kernels("portable") != nullptr && find_kernels("no such set") == nullptr, "find_kernels");
  return check::report("select");
}
