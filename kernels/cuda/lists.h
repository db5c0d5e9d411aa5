// What the kernels that choose from a list have in common: one block per list, the softmax of its heads, and what is
// above a threshold written in order.
#pragma once

#include <cmath>

#include "launches.h"

namespace qb {

constexpr int kListThreads = 512, kListWarps = kListThreads / kWarpSize;

static_assert(kMaxGroup <= kListWarps, "every head of a group has a warp of its own");

struct MergeShared {
  float top[kListWarps], sum[kListWarps];
  float log_total[kMaxGroup];
};

// What has no finite bound ranks first (NaN) and stays out of the sums.
QB_DEVICE float known(float scaled) { return scaled < INFINITY ? scaled : NAN; }

// log of the softmax's denominator of every head. Warps share the heads, so that all scores are on their way at once.
QB_DEVICE void log_totals(const float* scores, int64_t stride, int heads, int count, float scale, MergeShared& held) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, parts = kListWarps / heads;
  if (warp < parts * heads) {
    const float* own = scores + warp / parts * stride;
    const int first = warp % parts * kWarpSize + lane, step = parts * kWarpSize;
    float top = -INFINITY, sum = 0;
#pragma unroll 4
    for (int at = first; at < count; at += step) top = fmaxf(top, known(scale * own[at]));
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, lanes));
    const float base = top == -INFINITY ? 0.0f : top;
#pragma unroll 4
    for (int at = first; at < count; at += step) {
      const float x = known(scale * own[at]);
      sum += x == x ? expf(x - base) : 0.0f;
    }
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
    if (lane == 0) held.top[warp] = top, held.sum[warp] = sum;
  }
  __syncthreads();
  if (int(threadIdx.x) < heads) {
    const float* tops = held.top + threadIdx.x * parts;
    const float* sums = held.sum + threadIdx.x * parts;
    float top = -INFINITY, sum = 0;
    for (int i = 0; i < parts; ++i) top = fmaxf(top, tops[i]);
    for (int i = 0; i < parts; ++i) sum += sums[i] == 0 ? 0.0f : sums[i] * expf(tops[i] - top);
    held.log_total[threadIdx.x] = top == -INFINITY ? 0.0f : top + logf(sum);  // only -inf known: adds nothing
  }
  __syncthreads();
}

struct ListShared {
  unsigned counted[kListWarps];
};

// Writes `name(i)` of every i with a greater key, and of the first `equals` with this one, in order; returns how many.
template <class F>
QB_DEVICE int write_list(const unsigned* keys, int count, unsigned threshold, int equals, int32_t* out, ListShared& held,
                         const F& name) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const unsigned below = (1u << lane) - 1;
  int greater_before = 0, equal_before = 0;
  for (int start = 0; start < count; start += kListThreads) {
    const int at = start + int(threadIdx.x);
    const unsigned key = at < count ? keys[at] : 0;
    const bool greater = at < count && key > threshold, equal = at < count && key == threshold;
    const unsigned greaters = __ballot_sync(kAllLanes, greater), all_equal = __ballot_sync(kAllLanes, equal);
    if (lane == 0) held.counted[warp] = unsigned(__popc(greaters)) << 16 | unsigned(__popc(all_equal));
    __syncthreads();
    unsigned before = 0, total = 0;
    for (int i = 0; i < kListWarps; ++i) {
      if (i < warp) before += held.counted[i];
      total += held.counted[i];
    }
    const int greater_rank = greater_before + int(before >> 16) + __popc(greaters & below);
    const int equal_rank = equal_before + int(before & 0xffffu) + __popc(all_equal & below);
    if (greater || (equal && equal_rank < equals)) out[greater_rank + min(equal_rank, equals)] = name(at);
    greater_before += int(total >> 16), equal_before += int(total & 0xffffu);
    __syncthreads();
  }
  return greater_before + min(equal_before, equals);
}

}  // namespace qb
