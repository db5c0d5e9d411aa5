// Whether products of queries and keys are faster in integers on AVX2: a tile of 16 keys of 128 channels in the first-level
// cache, four queries that share it. Not part of the library; docs/kernels.md has figures.
//
//   g++ -std=c++20 -O3 -mavx2 -mfma -mf16c -Wno-psabi -Ikernels/include kernels/probe/integers.cpp -o integers && ./integers
#include <immintrin.h>

#include <chrono>
#include <cstdio>

#include "questbench/attend.h"

using namespace questbench;

namespace {

constexpr int kDim = 128, kRows = 16, kQueries = 4, kPair = 2;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Nanoseconds of a call, the least of many.
template <typename F>
double least(F f) {
  double best = 1e9;
  for (int i = 0; i < 3000; ++i) {
    const double start = now();
    for (int k = 0; k < 20; ++k) {
      f();
      asm volatile("" ::: "memory");
    }
    best = std::min(best, (now() - start) / 20);
  }
  return best * 1e9;
}

float sum_of_ints(__m256i x) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return static_cast<float>(_mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1))));
}

// Keys of one byte widened to two, queries of two bytes.
struct Words {
  typedef int8_t Key;
  typedef int16_t Query;
  static constexpr int kWidth = 16;
  static __m256i take(const Key* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static __m256i product(__m256i k, __m256i q) { return _mm256_madd_epi16(k, q); }
};
// Keys of seven bits and no sign, so that two products fit into two bytes; queries of one byte.
struct Bytes {
  typedef uint8_t Key;
  typedef int8_t Query;
  static constexpr int kWidth = 32;
  static __m256i take(const Key* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static __m256i product(__m256i k, __m256i q) { return _mm256_madd_epi16(_mm256_maddubs_epi16(k, q), _mm256_set1_epi16(1)); }
};
// Keys as they are stored, rounded to two bytes on the way.
struct Rounded {
  typedef bf16 Key;
  typedef int16_t Query;
  static constexpr int kWidth = 16;
  static __m256i take(const Key* p) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256 scale = _mm256_set1_ps(16.0f);
    const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    return _mm256_packs_epi32(_mm256_cvtps_epi32(even * scale), _mm256_cvtps_epi32(odd * scale));
  }
  static __m256i product(__m256i k, __m256i q) { return _mm256_madd_epi16(k, q); }
};

template <typename Way>
__attribute__((noinline)) void tile_products(const typename Way::Key* keys, const typename Way::Query* q, float* out) {
  for (int row = 0; row < kRows; row += kPair) {
    __m256i sums[kPair][kQueries] = {};
    for (int d = 0; d < kDim; d += Way::kWidth) {
#pragma GCC unroll 2
      for (int r = 0; r < kPair; ++r) {
        const __m256i key = Way::take(keys + (row + r) * kDim + d);
#pragma GCC unroll 4
        for (int g = 0; g < kQueries; ++g) {
          const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + g * kDim + d));
          sums[r][g] = _mm256_add_epi32(sums[r][g], Way::product(key, x));
        }
      }
    }
    for (int r = 0; r < kPair; ++r)
      for (int g = 0; g < kQueries; ++g) out[g * kRows + row + r] = sum_of_ints(sums[r][g]);
  }
}

template <typename Way>
void integers(const char* name) {
  alignas(64) static typename Way::Key keys[kRows * kDim] = {};
  alignas(64) static typename Way::Query q[kQueries * kDim] = {};
  alignas(64) static float out[kQueries * kRows];
  std::printf("%s: %.0f ns\n", name, least([&] { tile_products<Way>(keys, q, out); }));
}

}  // namespace

int main() {
  alignas(64) static bf16 keys[kRows * kDim] = {}, raw[kDim] = {};
  alignas(64) static Query<bf16> q[kQueries * kDim];
  alignas(64) static float out[kQueries * (kChunk + kLanes)];
  for (int g = 0; g < kQueries; ++g) put_query<bf16>(raw, kDim, q + g * kDim);
  std::printf("bf16 keys, fp32 arithmetic, as the library has it: %.0f ns\n", least([&] {
    dots<bf16, 0>(keys, kDim, kRows, q, kDim, kQueries, out, kChunk + kLanes, keys, kDim);
  }));
  integers<Rounded>("bf16 keys, rounded to 16 bits on the way");
  integers<Words>("keys of 8 bits, queries of 16");
  integers<Bytes>("keys of 7 bits, queries of 8");
}
