// Scores from bounds by channel: of each channel's two bounds only the one that counts is read, max where q_d > 0, min
// where q_d < 0. The same sums as score.h over half the bytes, for one query head at a time.
#pragma once

#include <algorithm>
#include <limits>

#include "questbench/paged.h"
#include "questbench/vector.h"

namespace questbench {

constexpr int64_t kChannelsAhead = 40;  // channels between the one in work and the one that is fetched

template <typename T, int kVecs>
__attribute__((always_inline)) inline void add_run(const T* run, float weight, Vec* sum) {
  if constexpr (kVecs == 1) {
    sum[0] += splat(weight) * load(run);
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; i += 2) {
      Vec a, b;
      load_pair(run + i * kLanes, &a, &b);
      sum[i] += splat(weight) * a;
      sum[i + 1] += splat(weight) * b;
    }
  }
}

// out[0 .. 16 kVecs) = sum_d q_d * (max or min)_d of as many neighbouring pages of one head's block. `q` goes on behind
// the head's channels with those of the next head, whose block lies right behind this one.
template <typename T, int kVecs>
__attribute__((noinline)) void sum_channels(const T* block, const float* q, int64_t dim, float* out) {
  Vec sum[kVecs];
  for (int i = 0; i < kVecs; ++i) sum[i] = Vec{};
  for (int64_t d = 0; d < dim; ++d) {
    const int64_t then = d + kChannelsAhead;
    prefetch_row(block + (2 * then + (q[then] < 0 ? 1 : 0)) * kLanePages, kVecs * kLanes * sizeof(T));
    add_run<T, kVecs>(block + (2 * d + (q[d] < 0 ? 1 : 0)) * kLanePages, q[d], sum);
    // 0 times an infinite bound is undefined, whichever of the two is infinite.
    if (__builtin_expect(q[d] == 0, 0)) add_run<T, kVecs>(block + (2 * d + 1) * kLanePages, 0.0f, sum);
  }
  for (int i = 0; i < kVecs; ++i) store(out + i * kLanes, sum[i]);
  if constexpr (kVecs > 1)
    for (int i = 0; i < kVecs; i += 2) untangle(block, out + i * kLanes);
}

// Scores of the pages [first, last) of one row for all heads; pages from `scored` on get -inf. `q` is fp32,
// [query_heads, head_dim] and kChannelsAhead more.
template <typename T>
void score_pages_by_channel(const Paged<T>& paged, int64_t row, int64_t first, int64_t last, int64_t scored,
                            const float* q, int group, float* scores, int64_t stride) {
  const int64_t end = std::min(last, scored), dim = paged.head_dim;
  float out[kLanePages];
  for (int64_t page = first; page < end;) {
    // Pages that are neighbours in one block are scored together, whole vectors at a time.
    const int64_t at = paged.physical(row, page), lane = at % kLanePages;
    int64_t count = 1;
    while (page + count < end && lane + count < kLanePages && paged.physical(row, page + count) == at + count) ++count;
    const int64_t from = lane / kLanes, to = (lane + count - 1) / kLanes;
    for (int64_t head = 0; head < paged.kv_heads * group; ++head) {
      const T* block = paged.bounds + (at / kLanePages * paged.kv_heads + head / group) * 2 * dim * kLanePages;
      if (to - from > 1) {
        sum_channels<T, 4>(block, q + head * dim, dim, out);
      } else {
        for (int64_t vec = from; vec <= to; ++vec)
          sum_channels<T, 1>(block + vec * kLanes, q + head * dim, dim, out + vec * kLanes);
      }
      std::copy_n(out + lane, count, scores + head * stride + page);
    }
    page += count;
  }
  for (int64_t h = 0; h < paged.kv_heads * group; ++h)
    for (int64_t page = std::max(first, std::min(scored, last)); page < last; ++page)
      scores[h * stride + page] = -std::numeric_limits<float>::infinity();
}

}  // namespace questbench
