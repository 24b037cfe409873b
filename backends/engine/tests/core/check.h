// Checks for the C++ tests: a failed one is printed and counted, and main returns the count.
#pragma once
#include <cstdio>
#include <sstream>

namespace obert::testing {

inline int failures = 0;
inline int checks = 0;

template <class A, class B>
void same(const A& a, const B& b, const char* text, const char* file, int line) {
  ++checks;
  if (a == b) return;
  ++failures;
  std::ostringstream out;
  out << file << ":" << line << ": " << text << ": " << a << " against " << b;
  if (failures <= 50) std::fprintf(stderr, "%s\n", out.str().c_str());
}

inline void holds(bool ok, const char* text, const char* file, int line) {
  ++checks;
  if (ok) return;
  ++failures;
  if (failures <= 50) std::fprintf(stderr, "%s:%d: expected %s\n", file, line, text);
}

inline int finish() {
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures ? 1 : 0;
}

}  // namespace obert::testing

#define CHECK(condition) ::obert::testing::holds((condition), #condition, __FILE__, __LINE__)
#define CHECK_SAME(a, b) ::obert::testing::same((a), (b), #a " == " #b, __FILE__, __LINE__)
