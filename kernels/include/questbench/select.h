// The `wanted` best pages of one head, exact on the given fp32 scores, in ascending order.
//
// Scores become monotone 32-bit keys (NaN first, then by value, +0 and -0 alike); a radix search over 8-bit digits
// finds the smallest key that is still taken; equal keys are taken from the lower page on.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "questbench/vector.h"

namespace questbench {

enum class Merge { kNone = 0, kSumSoftmax = 1, kMax = 2 };

inline uint32_t order_key(float score) {
  if (score != score) return 0xffffffffu;
  score += 0.0f;  // -0 becomes +0
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
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
  // The digit-wise search narrows the keys that may be the last one taken.
  std::vector<uint32_t> open(keys);
  uint32_t prefix = 0;
  int64_t left = wanted;
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t counts[256] = {};
    for (uint32_t key : open) ++counts[(key >> shift) & 255];
    int digit = 255;
    while (counts[digit] < left) left -= counts[digit--];
    prefix |= static_cast<uint32_t>(digit) << shift;
    size_t kept = 0;
    for (uint32_t key : open) {
      open[kept] = key;
      kept += ((key >> shift) & 255) == static_cast<uint32_t>(digit);
    }
    open.resize(kept);
  }
  // Everything above `prefix`, and the first `left` pages that equal it.
  int64_t taken = 0;
  for (int64_t p = 0; p < pages && taken < wanted; ++p) {
    const bool equal = keys[p] == prefix && left > 0;
    left -= equal;
    out[taken] = static_cast<int32_t>(p);
    taken += keys[p] > prefix || equal;
  }
  return taken;
}

}  // namespace questbench
