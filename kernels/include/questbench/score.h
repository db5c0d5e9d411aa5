// score[b, h, page] = sum_d max(q_d * max_d, q_d * min_d) = [max(q, 0); min(q, 0)] . [max; min]
//
// The upper bound of q . k over a page is a plain product of length 2 D with the page's stored bounds.
// Reads 2 D elements per page and KV head, once for all query heads of the group.
#pragma once

#include <algorithm>

#include "questbench/dots.h"
#include "questbench/paged.h"

namespace questbench {

constexpr int64_t kScorePages = 64;  // pages per work item

// The queries of one row as [query_heads, query_width(2 D)].
template <typename T>
void split_signs(const T* q, int64_t query_heads, int64_t head_dim, Query<T>* out) {
  std::vector<float> both(2 * head_dim);
  for (int64_t h = 0; h < query_heads; ++h) {
    for (int64_t d = 0; d < head_dim; ++d) {
      const float x = to_float(q[h * head_dim + d]);
      both[d] = x > 0 ? x : (x != x ? x : 0.0f);
      both[head_dim + d] = x < 0 ? x : (x != x ? x : 0.0f);
    }
    put_query<T>(both.data(), 2 * head_dim, out + h * query_width(2 * head_dim));
  }
}

// NaN scores anew as sum_d max(q_d * max_d, q_d * min_d), NaN only where a product is NaN.
template <typename T>
__attribute__((noinline, cold)) void mend(const Paged<T>& paged, int64_t row, int64_t page, int64_t head, int count,
                                          const Query<T>* split, float* scores) {
  const int64_t dim = paged.head_dim;
  for (int i = 0; i < count; ++i) {
    if (scores[i] == scores[i]) continue;
    const T* bounds = paged.bounds_of(row, page + i, head);
    scores[i] = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const float positive = to_float(split[place_of<T>(d, 2 * dim)]), negative = to_float(split[place_of<T>(dim + d, 2 * dim)]);
      const float q = positive != 0 ? positive : negative;
      const float a = q * to_float(bounds[d]), b = q * to_float(bounds[dim + d]);
      scores[i] += (b > a || b != b) ? b : a;
    }
  }
}

// Scores of the pages [first, last) of one row for all heads; pages from `scored` on get -inf.
template <typename T, int D>
void score_pages(const Paged<T>& paged, int64_t row, int64_t first, int64_t last, int64_t scored, const Query<T>* q,
                 int group, float* scores, int64_t stride) {
  const float none = -std::numeric_limits<float>::infinity();
  const int64_t end = std::min(last, scored), step = paged.kv_heads * 2 * paged.head_dim;
  const int64_t width = query_width(2 * paged.head_dim);
  float out[kMaxGroup * kLanes];
  for (int64_t page = first; page < end; page += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, end - page));
    // Neighbours in the pool are read as one block; pages scattered over it one by one.
    bool straight = true;
    for (int i = 1; i < count; ++i)
      straight &= paged.physical(row, page + i) == paged.physical(row, page) + i;
    const int64_t ahead = page + kLanes;
    for (int64_t head = 0; head < paged.kv_heads; ++head) {
      const Query<T>* own = q + head * group * width;
      if (straight) {
        // The bounds of the next head lie right behind these.
        const T* next = head + 1 < paged.kv_heads ? paged.bounds_of(row, page, head + 1)
                        : ahead + count <= end    ? paged.bounds_of(row, ahead, 0)
                                                  : nullptr;
        dots<T, 2 * D>(paged.bounds_of(row, page, head), step, count, own, 2 * paged.head_dim, group, out, kLanes, next, step);
      } else {
        float single[kMaxGroup * kLanes];
        for (int i = 0; i < count; ++i) {
          const T* next = i + 1 < count ? paged.bounds_of(row, page + i + 1, head) : nullptr;
          dots<T, 2 * D>(paged.bounds_of(row, page + i, head), step, 1, own, 2 * paged.head_dim, group, single, kLanes,
                         next, step);
          for (int g = 0; g < group; ++g) out[g * kLanes + i] = single[g * kLanes];
        }
      }
      for (int g = 0; g < group; ++g) {
        float* target = scores + (head * group + g) * stride + page;
        std::copy_n(out + g * kLanes, count, target);
        // 0 * inf: the product form is undefined for infinite bounds where the definition is not.
        if (any_nan(load(out + g * kLanes)))
          mend<T>(paged, row, page, head, count, own + g * width, target);
      }
    }
  }
  for (int64_t h = 0; h < paged.kv_heads * group; ++h)
    for (int64_t page = std::max(first, std::min(scored, last)); page < last; ++page) scores[h * stride + page] = none;
}

}  // namespace questbench
