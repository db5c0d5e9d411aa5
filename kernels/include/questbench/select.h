// The `wanted` best pages of one head, exact on the given fp32 scores, in ascending order.
//
// Scores become monotone 32-bit keys (NaN first, then by value, +0 and -0 alike); a search for the smallest key that is
// still taken halves its range, or better; equal keys are taken from the lower page on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
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

// 16 neighbouring scores of one head times `scale`, -inf past the last; NaN for what has no finite bound (NaN and +inf).
QB_INLINE Vec known_scores(const float* scores, int64_t at, int64_t count, float scale) {
  const float none = -std::numeric_limits<float>::infinity(), unknown = std::numeric_limits<float>::quiet_NaN();
  Vec x;
  if (at + kLanes <= count) {
    x = load(scores + at) * splat(scale);
  } else {
    float tail[kLanes];
    std::fill_n(tail, kLanes, none);
    for (int64_t i = at; i < count; ++i) tail[i - at] = scores[i] * scale;
    x = load(tail);
  }
  return QB_CHOOSE(x < splat(-none), x, splat(unknown));
}

// log of the denominator of one head's softmax over what it knows; 0 where that is -inf alone: it adds nothing.
inline float log_total(const float* scores, int64_t count, float scale) {
  const float none = -std::numeric_limits<float>::infinity();
  Vec tops = splat(none), sums = {};
  for (int64_t at = 0; at < count; at += kLanes) tops = max_of(known_scores(scores, at, count, scale), tops);
  const float top = max_of(tops);
  if (top == none) return 0;
  for (int64_t at = 0; at < count; at += kLanes) {
    const Vec x = known_scores(scores, at, count, scale);
    sums += exp_of(QB_CHOOSE(x == x, x, splat(none)) - splat(top));
  }
  return top + std::log(sum_of(sums));
}

// Scores of a group's query heads as one list of scores.
//
// kSumSoftmax ranks by the sum over heads of the softmax over pages, held as its logarithm: pages far below the best
// keep their order where the sum itself would have been rounded to zero. One head alone ranks by its raw scores. NaN and
// +inf become NaN: the page ranks first and the others keep their order. A head that knows only -inf adds nothing.
inline void merge_scores(const float* scores, int64_t stride, int group, int64_t pages, Merge merge, float scale,
                         float* out) {
  const float none = -std::numeric_limits<float>::infinity(), unknown = std::numeric_limits<float>::quiet_NaN();
  if (merge == Merge::kSumSoftmax && group == 1) {
    for (int64_t p = 0; p < pages; ++p) out[p] = scores[p] * scale < -none ? scores[p] : unknown;
    return;
  }
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
  float log_totals[kMaxGroup];
  for (int g = 0; g < group; ++g) log_totals[g] = log_total(scores + g * stride, pages, scale);
  for (int64_t p = 0; p < pages; p += kLanes) {
    Vec parts[kMaxGroup], top = splat(none), sum = {};
    for (int g = 0; g < group; ++g) {
      parts[g] = known_scores(scores + g * stride, p, pages, scale) - splat(log_totals[g]);
      top = max_of(parts[g], top);
    }
    const Vec base = QB_CHOOSE(top == splat(none), Vec{}, top);
    for (int g = 0; g < group; ++g) sum += exp_of(parts[g] - base);
    const Vec merged = top + log_of(sum);
    if (p + kLanes <= pages) {
      store(out + p, merged);
    } else {
      for (int64_t i = p; i < pages; ++i) out[i] = merged[i - p];
    }
  }
}

// Writes the chosen pages to `out` and returns how many there are, min(wanted, pages).
inline int64_t select_pages(const float* scores, int64_t pages, int64_t wanted, int32_t* out) {
  if (wanted <= 0) return 0;
  if (wanted >= pages) {
    for (int64_t p = 0; p < pages; ++p) out[p] = static_cast<int32_t>(p);
    return pages;
  }
  thread_local std::vector<uint32_t> kept;
  if (static_cast<int64_t>(kept.size()) < pages) kept.resize(pages);
  uint32_t* const keys = kept.data();
  for (int64_t p = 0; p < pages; ++p) keys[p] = order_key(scores[p]);
  uint32_t least = ~0u, most = 0;  // a loop of its own: together they are no vector code
  for (int64_t p = 0; p < pages; ++p) {
    least = std::min(least, keys[p]);
    most = std::max(most, keys[p]);
  }
  // The largest threshold that at least `wanted` keys reach is in [threshold, above); every count is one pass of vector
  // compares. The range is split where `wanted` keys would be if they were spread evenly over it, and every third time in
  // the middle: no spread of keys takes more than three passes for a bit.
  uint32_t threshold = least;
  uint64_t above = uint64_t{most} + 1;
  int64_t reached = pages, over = 0;
  for (int turn = 0; reached != wanted && above - threshold > 1; ++turn) {
    const uint64_t span = above - threshold;
    const double share = turn % 3 != 2 ? static_cast<double>(reached - wanted) / static_cast<double>(reached - over) : 0.5;
    const uint32_t trial = threshold + static_cast<uint32_t>(std::clamp<double>(share * span, 1, span - 1));
    uint32_t count = 0;
    for (int64_t p = 0; p < pages; ++p) count += keys[p] >= trial;
    if (count >= wanted) {
      threshold = trial;
      reached = count;
    } else {
      above = trial;
      over = count;
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
#elif defined(__AVX2__)
  if (reached == wanted) {
    const __m256i sign = _mm256_set1_epi32(std::numeric_limits<int32_t>::min());  // compares are signed
    const __m256i least_key = _mm256_xor_si256(_mm256_set1_epi32(static_cast<int32_t>(threshold)), sign);
    int64_t p = 0;
    for (; p + 8 <= pages; p += 8) {
      const __m256i eight = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(&keys[p])), sign);
      const int below = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(least_key, eight)));
      for (int hits = ~below & 0xff; hits != 0; hits &= hits - 1)
        out[taken++] = static_cast<int32_t>(p + __builtin_ctz(static_cast<unsigned>(hits)));
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
