// The `wanted` best pages of one head, exact on the given fp32 scores, in ascending order.
//
// Scores become monotone 32-bit keys (NaN first, then by value, +0 and -0 alike); a binary search over the bits of the
// key finds the smallest one that is still taken; equal keys are taken from the lower page on.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "questbench/vector.h"

namespace questbench {

enum class Merge { kNone = 0, kSumSoftmax = 1, kMax = 2 };

// Branch-free, so that loops over it become vector code.
inline uint32_t order_key(float score) {
  score += 0.0f;  // -0 becomes +0
  int32_t bits;
  std::memcpy(&bits, &score, 4);
  const uint32_t key = static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u);
  return score != score ? 0xffffffffu : key;
}

// Scores of a group's query heads as one list: `out` may be `scores` itself for one head.
inline void merge_scores(const float* scores, int64_t stride, int group, int64_t pages, Merge merge, float scale,
                         float* out) {
  const int64_t whole = pages / kLanes * kLanes;
  if (merge != Merge::kSumSoftmax) {
    std::copy_n(scores, pages, out);
    for (int g = 1; g < group; ++g) {
      for (int64_t p = 0; p < pages; ++p) {
        const float a = out[p], b = scores[g * stride + p];
        out[p] = (b > a || b != b) ? b : a;  // NaN wins
      }
    }
    return;
  }
  std::fill_n(out, pages, 0.0f);
  std::vector<float> weights(whole + kLanes);
  for (int g = 0; g < group; ++g) {
    const float* own = scores + g * stride;
    Vec tops = splat(-std::numeric_limits<float>::infinity());
    for (int64_t p = 0; p < whole; p += kLanes) tops = max_of(load(own + p) * splat(scale), tops);
    float top = max_of(tops);
    for (int64_t p = whole; p < pages; ++p) top = std::max(top, own[p] * scale);
    Vec sums = {};
    for (int64_t p = 0; p < whole; p += kLanes) {
      const Vec weight = exp_of(load(own + p) * splat(scale) - splat(top));
      sums += weight;
      store(&weights[p], weight);
    }
    float sum = sum_of(sums);
    for (int64_t p = whole; p < pages; ++p) {
      Vec one = exp_of(splat(own[p] * scale - top));
      weights[p] = one[0];
      sum += weights[p];
    }
    const float inverse = 1.0f / sum;
    for (int64_t p = 0; p < whole; p += kLanes) store(out + p, load(out + p) + load(&weights[p]) * splat(inverse));
    for (int64_t p = whole; p < pages; ++p) out[p] += weights[p] * inverse;
  }
}

// Writes the chosen pages to `out` and returns how many there are, min(wanted, pages).
inline int64_t select_pages(const float* scores, int64_t pages, int64_t wanted, int32_t* out) {
  if (wanted <= 0) return 0;
  if (wanted >= pages) {
    for (int64_t p = 0; p < pages; ++p) out[p] = static_cast<int32_t>(p);
    return pages;
  }
  std::vector<uint32_t> keys(pages);
  for (int64_t p = 0; p < pages; ++p) keys[p] = order_key(scores[p]);
  // The largest threshold that at least `wanted` keys reach, bit by bit; every count is one pass of vector compares.
  uint32_t threshold = 0;
  int64_t reached = pages;
  for (int bit = 31; bit >= 0 && reached != wanted; --bit) {
    const uint32_t trial = threshold | (1u << bit);
    uint32_t count = 0;
    for (int64_t p = 0; p < pages; ++p) count += keys[p] >= trial;
    if (count >= wanted) {
      threshold = trial;
      reached = count;
    }
  }
  // Everything above the threshold, and of the keys that equal it the first ones: drop `reached - wanted` from the end.
  int64_t spare = 0;
  if (reached > wanted)
    for (int64_t p = 0; p < pages; ++p) spare += keys[p] == threshold;
  int64_t equal = spare - (reached - wanted), taken = 0;
  if (reached == wanted) equal = pages;
#if defined(__AVX512F__)
  if (reached == wanted) {
    const __m512i least = _mm512_set1_epi32(static_cast<int32_t>(threshold)), step = _mm512_set1_epi32(kLanes);
    __m512i ids = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t p = 0;
    for (; p + kLanes <= pages; p += kLanes, ids = _mm512_add_epi32(ids, step)) {
      const __mmask16 hit = _mm512_cmpge_epu32_mask(_mm512_loadu_si512(&keys[p]), least);
      const int count = __builtin_popcount(hit);
      _mm512_mask_storeu_epi32(out + taken, static_cast<__mmask16>((1u << count) - 1), _mm512_maskz_compress_epi32(hit, ids));
      taken += count;
    }
    for (; p < pages; ++p)
      if (keys[p] >= threshold) out[taken++] = static_cast<int32_t>(p);
    return taken;
  }
#endif
  for (int64_t p = 0; p < pages; ++p) {
    if (keys[p] < threshold || (keys[p] == threshold && equal-- <= 0)) continue;
    out[taken++] = static_cast<int32_t>(p);
  }
  return taken;
}

}  // namespace questbench
