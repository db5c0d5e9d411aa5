// acc[g][d] += sum_t p[g][t] v[t][d] with bf16 products, two entries at a time: twice the work of fp32 products per
// instruction. Weights are rounded to bf16 as tensor-core kernels do; products are exact and sums are fp32.
#pragma once

#include "questbench/vector.h"

namespace questbench {

// Whether values of T can be weighed in pairs, by several heads at once.
template <typename T>
constexpr bool kPairs = false;

// Defined where they are used: see kPairs.
template <typename T>
void store_weights(T* to, Vec p);
template <typename T>
void add_values_in_pairs(const T* tile, int count, const T* p, int64_t p_stride, int heads, int64_t n, float* acc,
                         int64_t width, const T* next);

// 32 sums as the interleaving of 128-bit lanes left them: 0-3, 8-11, 16-19, 24-27, then 4-7, 12-15, 20-23, 28-31.
inline void untangle_pairs(float* p) {
  float mixed[2 * kLanes];
  std::memcpy(mixed, p, sizeof mixed);
  for (int i = 0; i < 2 * kLanes; ++i) p[i] = mixed[i / 8 * 4 + i % 4 + (i % 8 / 4) * kLanes];
}
#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
template <>
inline constexpr bool kPairs<bf16> = true;

// 16 weights, rounded.
inline void store_weights(bf16* to, Vec p) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)p);
  std::memcpy(to, &rounded, sizeof rounded);
}

// 32 entries of a row from p on, or with kRest the first of them that `rest` has a bit for, zeros behind.
template <bool kRest>
__attribute__((always_inline)) inline __m512i load_part(const bf16* p, __mmask32 rest) {
  return kRest ? _mm512_maskz_loadu_epi16(rest, p) : _mm512_loadu_si512(p);
}

// 32 kParts columns for kHeads heads; with kRest one part, whose columns are those of `rest`. If kFetch, every row fetches
// the same columns of the row of `next`.
template <int kHeads, int kParts, bool kRest, bool kFetch>
__attribute__((always_inline)) inline void add_pairs(const bf16* tile, int count, const bf16* p, int64_t p_stride, int64_t n,
                                                     float* acc, int64_t width, __mmask32 rest, const bf16* next) {
  __m512 sum[kHeads][2 * kParts];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kParts; ++i) sum[h][i] = _mm512_loadu_ps(acc + h * width + i * kLanes);
  for (int t = 0; t < count; t += 2) {
    const bool whole = t + 1 < count;
    if (kFetch) {
      prefetch_row(next + t * n, kParts * 64);
      if (whole) prefetch_row(next + (t + 1) * n, kParts * 64);
    }
    __m512i both[2 * kParts];
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) {
      const __m512i a = load_part<kRest>(tile + t * n + 32 * i, rest);
      // Behind the last entry nothing may be read, not even to be multiplied by zero: neither its value nor its weight.
      const __m512i b = whole ? load_part<kRest>(tile + (t + 1) * n + 32 * i, rest) : _mm512_setzero_si512();
      both[2 * i] = _mm512_unpacklo_epi16(a, b);
      both[2 * i + 1] = _mm512_unpackhi_epi16(a, b);
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      int32_t pair;
      if (whole) {
        std::memcpy(&pair, p + h * p_stride + t, sizeof pair);
      } else {
        pair = p[h * p_stride + t].bits;
      }
      const __m512i weight = _mm512_set1_epi32(pair);
#pragma GCC unroll 8
      for (int i = 0; i < 2 * kParts; ++i) sum[h][i] = _mm512_dpbf16_ps(sum[h][i], (__m512bh)both[i], (__m512bh)weight);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kParts; ++i) _mm512_storeu_ps(acc + h * width + i * kLanes, sum[h][i]);
}

template <int kParts, bool kRest>
inline void add_pair_columns(const bf16* tile, int count, const bf16* p, int64_t p_stride, int heads, int64_t n, float* acc,
                             int64_t width, __mmask32 rest, const bf16* next) {
  int g = 0;
  for (; g + 4 <= heads; g += 4) {
    if (g == 0) {
      add_pairs<4, kParts, kRest, true>(tile, count, p, p_stride, n, acc, width, rest, next);
    } else {
      add_pairs<4, kParts, kRest, false>(tile, count, p + g * p_stride, p_stride, n, acc + g * width, width, rest, next);
    }
  }
  for (; g + 2 <= heads; g += 2) {
    if (g == 0) {
      add_pairs<2, kParts, kRest, true>(tile, count, p, p_stride, n, acc, width, rest, next);
    } else {
      add_pairs<2, kParts, kRest, false>(tile, count, p + g * p_stride, p_stride, n, acc + g * width, width, rest, next);
    }
  }
  if (g < heads)
    add_pairs<1, kParts, kRest, false>(tile, count, p + g * p_stride, p_stride, n, acc + g * width, width, rest, next);
}

// All columns; rows of `acc` are `width` apart, a multiple of 32. Sums stay interleaved until untangle_pairs.
inline void add_values_in_pairs(const bf16* tile, int count, const bf16* p, int64_t p_stride, int heads, int64_t n,
                                float* acc, int64_t width, const bf16* next) {
  if (next == nullptr) next = tile;
  const __mmask32 rest = (1u << n % 32) - 1;
  int64_t d = 0;
  for (; d + 64 <= n; d += 64)
    add_pair_columns<2, false>(tile + d, count, p, p_stride, heads, n, acc + d, width, rest, next + d);
  for (; d + 32 <= n; d += 32)
    add_pair_columns<1, false>(tile + d, count, p, p_stride, heads, n, acc + d, width, rest, next + d);
  if (d < n) add_pair_columns<1, true>(tile + d, count, p, p_stride, heads, n, acc + d, width, rest, next + d);
}
#endif

}  // namespace questbench
