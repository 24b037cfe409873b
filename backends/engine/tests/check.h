// A minimal test harness: CHECK counts failures and prints the first of them, with what was expected
// and a message that printf formats, if there is one; report() is main's result.
#pragma once
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <sstream>

namespace check {

inline int& failures() {
  static int count = 0;
  return count;
}
inline long& checks() {
  static long count = 0;
  return count;
}

inline bool that(bool ok, const char* expected, const char* file, int line, const char* format, ...)
    __attribute__((format(printf, 5, 6)));
inline bool that(bool ok, const char* expected, const char* file, int line, const char* format, ...) {
  ++checks();
  if (ok) return true;
  if (++failures() <= 20) {
    std::va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "%s:%d: expected %s:", file, line, expected);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
  }
  return false;
}

template <class A, class B>
bool same(const A& a, const B& b, const char* expected, const char* file, int line) {
  if (that(a == b, expected, file, line, " ")) return true;
  std::ostringstream found;
  found << a << " against " << b;
  if (failures() <= 20) std::fprintf(stderr, "  %s\n", found.str().c_str());
  return false;
}

// Both NaN, or within the bound.
inline bool near(double a, double b, double bound) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b || std::fabs(a - b) <= bound;
}

inline int report(const char* name) {
  std::printf("%s: %ld checks, %d failures\n", name, checks(), failures());
  return failures() ? 1 : 0;
}

}  // namespace check

#define CHECK(ok, ...) check::that((ok), #ok, __FILE__, __LINE__, " " __VA_ARGS__)
#define CHECK_SAME(a, b) check::same((a), (b), #a " == " #b, __FILE__, __LINE__)
