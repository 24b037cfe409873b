// What the multiply pipes of this processor give when nothing else is asked of them.
#pragma once
#include <chrono>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#ifdef OBERT_HAVE_AMX
#include "tile_amx.h"
#endif

namespace obert {

struct Peak {
  double int8 = 0, float32 = 0, bfloat16 = 0;  // GMAC/s of one core
};

template <class Run>
inline double rate_of(double macs, const Run& run) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int i = 0; i < 12; ++i) {
    const auto begin = Clock::now();
    run();
    best = std::max(best, macs / std::chrono::duration<double>(Clock::now() - begin).count() * 1e-9);
  }
  return best;
}

#if defined(__x86_64__)
constexpr long kPeakRounds = 2000000;

__attribute__((target("avx2,fma"), noinline)) inline void spin_avx2_int8() {
  __m256i sum[10] = {}, w = _mm256_set1_epi8(1), x = w, one = _mm256_set1_epi16(1);
  for (long i = 0; i < kPeakRounds; ++i) {
    for (__m256i& s : sum) {
      __asm__ volatile("" : "+x"(x));
      s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), one));
    }
  }
  for (__m256i& s : sum) __asm__ volatile("" ::"x"(s));
}

#ifdef OBERT_HAVE_AVXVNNI
__attribute__((target("avx2"), noinline)) inline void spin_avxvnni_int8() {
  __m256i sum[12] = {}, w = _mm256_set1_epi8(1), x = w;
  for (long i = 0; i < kPeakRounds; ++i)
    for (__m256i& s : sum) __asm__ volatile("%{vex%} vpdpbusd %1, %2, %0" : "+x"(s) : "x"(w), "x"(x));
  for (__m256i& s : sum) __asm__ volatile("" ::"x"(s));
}
#endif

__attribute__((target("avx2,fma"), noinline)) inline void spin_avx2_float() {
  __m256 sum[12] = {}, w = _mm256_set1_ps(1), x = w;
  for (long i = 0; i < kPeakRounds; ++i)
    for (__m256& s : sum) __asm__ volatile("vfmadd231ps %1, %2, %0" : "+x"(s) : "x"(w), "x"(x));
  for (__m256& s : sum) __asm__ volatile("" ::"x"(s));
}

__attribute__((target("avx512f,avx512vnni"), noinline)) inline void spin_avx512_int8() {
  __m512i sum[12] = {}, w = _mm512_set1_epi8(1), x = w;
  for (long i = 0; i < kPeakRounds; ++i)
    for (__m512i& s : sum) __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(s) : "v"(w), "v"(x));
  for (__m512i& s : sum) __asm__ volatile("" ::"v"(s));
}

__attribute__((target("avx512f"), noinline)) inline void spin_avx512_float() {
  __m512 sum[12] = {}, w = _mm512_set1_ps(1), x = w;
  for (long i = 0; i < kPeakRounds; ++i)
    for (__m512& s : sum) __asm__ volatile("vfmadd231ps %1, %2, %0" : "+v"(s) : "v"(w), "v"(x));
  for (__m512& s : sum) __asm__ volatile("" ::"v"(s));
}
#endif

#ifdef OBERT_HAVE_AMX
__attribute__((target("amx-tile,amx-int8"), noinline)) inline void spin_amx_int8() {
  tile_configure(kFullTiles);
  for (long i = 0; i < kPeakRounds; ++i) {
    tile_dot<0, 4, 6>();
    tile_dot<1, 4, 7>();
    tile_dot<2, 5, 6>();
    tile_dot<3, 5, 7>();
  }
  tile_release();
}

__attribute__((target("amx-tile,amx-bf16"), noinline)) inline void spin_amx_bfloat16() {
  tile_configure(kFullTiles);
  for (long i = 0; i < kPeakRounds; ++i) {
    tile_dot_bf16<0, 4, 6>();
    tile_dot_bf16<1, 4, 7>();
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
  }
  tile_release();
}
#endif

inline Peak measure_peak([[maybe_unused]] const char* isa) {
  Peak peak;
#if defined(__x86_64__)
  const double rounds = kPeakRounds;
#ifdef OBERT_HAVE_AMX
  if (!std::strcmp(isa, "amx")) {
    peak.int8 = rate_of(rounds * 4 * 16 * 16 * 64, spin_amx_int8);
    peak.float32 = rate_of(rounds * 12 * 16, spin_avx512_float);
    peak.bfloat16 = rate_of(rounds * 4 * 16 * 16 * 32, spin_amx_bfloat16);
    return peak;
  }
#endif
  if (!std::strcmp(isa, "avx512vnni")) {
    peak.int8 = rate_of(rounds * 12 * 64, spin_avx512_int8);
    peak.float32 = rate_of(rounds * 12 * 16, spin_avx512_float);
  } else if (std::strcmp(isa, "portable") != 0) {
    peak.int8 = rate_of(rounds * 10 * 32, spin_avx2_int8);
#ifdef OBERT_HAVE_AVXVNNI
    if (!std::strcmp(isa, "avxvnni")) peak.int8 = rate_of(rounds * 12 * 32, spin_avxvnni_int8);
#endif
    peak.float32 = rate_of(rounds * 12 * 8, spin_avx2_float);
  }
#endif
  return peak;
}

}  // namespace obert
