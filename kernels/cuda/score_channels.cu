// The same scores from bounds by channel: of each channel only the bound that counts for the sign of q_d is read, the
// maximum where q_d > 0 and the minimum where q_d < 0. For one query head at a time (MHA), half the bytes of score_pages.
//
// A block scores 64 logical pages. Where they are one aligned run of physical pages, a channel's bounds are 128
// neighbouring bytes, eight lanes read them; elsewhere every thread follows the page table for a page of its own.
#include <cmath>

#include "launches.h"

namespace qb {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kStep = 4 * kWarps;  // channels that a block takes at a time, four a warp
// Loads of a thread on their way before the first is used. They stand by themselves: none moves past the rare branch
// for channels of the query that are zero.
constexpr int kBatch = 4;

template <int D>
struct ChannelShared {
  static_assert(D % (kBatch * kStep) == 0, "whole batches");
  float q[D];
  float sums[kWarps][kLanePages];
  int64_t physical[kLanePages];
  int scattered;
};

template <class T>
QB_DEVICE void add_products(float (&sums)[8], float q, Vec16 bounds) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Float2 pair = unpack2<T>(bounds.x[i]);
    sums[2 * i] += q * pair.x;
    sums[2 * i + 1] += q * pair.y;
  }
}

template <class T, int D>
QB_KERNEL __launch_bounds__(kThreads, 8) score_channels_kernel(ScoreJob<T> job) {
  begin_kernel();
  const Paged<T>& paged = job.paged;
  ChannelShared<D>& held = shared<ChannelShared<D>>();
  const int query = blockIdx.y, row = blockIdx.z, head = query / (job.query_heads / paged.kv_heads);
  const int first = blockIdx.x * kLanePages, scored = paged.pages_of(row) - job.skip_newest;
  const int here = max(min(scored - first, kLanePages), 0);  // pages to score; the rest of the block gets -inf
  float* out = job.scores + (int64_t{row} * job.query_heads + query) * paged.pages;
  if (here > 0) {
    const T* own = job.q + (int64_t{row} * job.query_heads + query) * D;
    for (int d = threadIdx.x; d < D; d += kThreads) held.q[d] = to_float(own[d]);
    if (threadIdx.x == 0) held.scattered = 0;
    if (threadIdx.x < kLanePages) held.physical[threadIdx.x] = paged.physical(row, first + min(int(threadIdx.x), here - 1));
  }
  __syncthreads();
  if (here > 0) {
    const int64_t base = held.physical[0];
    if (threadIdx.x < here && (held.physical[threadIdx.x] != base + threadIdx.x || base % kLanePages != 0))
      held.scattered = 1;
  }
  __syncthreads();
  if (here > 0 && held.scattered == 0) {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, part = lane % 8;
    const T* block = paged.bounds + (held.physical[0] / kLanePages * paged.kv_heads + head) * D * 2 * kLanePages;
    float sums[8] = {};
    for (int begin = warp * 4 + lane / 8; begin < D; begin += kBatch * kStep) {
      Vec16 bounds[kBatch];
#pragma unroll
      for (int at = 0; at < kBatch; ++at) {
        const int d = begin + at * kStep;
        bounds[at] = load_global_streaming(block + (2 * d + (held.q[d] < 0)) * kLanePages + part * 8);
      }
#pragma unroll
      for (int at = 0; at < kBatch; ++at) {
        const int d = begin + at * kStep;
        add_products<T>(sums, held.q[d], bounds[at]);
        // 0 times an infinite bound is undefined, whichever of the two is infinite.
        if (held.q[d] == 0)
          add_products<T>(sums, 0.0f, load_global_streaming(block + (2 * d + 1) * kLanePages + part * 8));
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sums[i] += __shfl_xor_sync(kAllLanes, sums[i], 8);
      sums[i] += __shfl_xor_sync(kAllLanes, sums[i], 16);
      if (lane < 8) held.sums[warp][part * 8 + i] = sums[i];
    }
  } else if (here > 0) {
    // The same order of additions as above: where a page lies must not change its score.
    const int page = threadIdx.x % kLanePages;
    for (int warp = threadIdx.x / kLanePages; warp < kWarps; warp += kThreads / kLanePages) {
      float sums[4] = {};
      if (page < here) {
        const int64_t at = held.physical[page];
        const T* lane = paged.bounds + (at / kLanePages * paged.kv_heads + head) * D * 2 * kLanePages + at % kLanePages;
        for (int begin = warp * 4; begin < D; begin += kBatch * kStep) {
          T bounds[kBatch][4];
#pragma unroll
          for (int n = 0; n < kBatch; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int d = begin + n * kStep + i;
              bounds[n][i] = lane[(2 * d + (held.q[d] < 0)) * kLanePages];
            }
#pragma unroll
          for (int n = 0; n < kBatch; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int d = begin + n * kStep + i;
              const float q = held.q[d];
              sums[i] += q * to_float(bounds[n][i]);
              if (q == 0) sums[i] += q * to_float(lane[(2 * d + 1) * kLanePages]);
            }
        }
      }
      held.sums[warp][page] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
  }
  __syncthreads();
  if (threadIdx.x < kLanePages && first + threadIdx.x < paged.pages) {
    const int page = threadIdx.x;
    float sum = -INFINITY;
    if (page < here) sum = held.sums[0][page] + held.sums[1][page] + held.sums[2][page] + held.sums[3][page];
    out[first + page] = sum;
  }
}

template <class T, int D>
void launch_blocks(const ScoreJob<T>& job, Stream stream) {
  const dim3 grid((job.paged.pages + kLanePages - 1) / kLanePages, job.query_heads, job.paged.rows);
  launch_dependent(score_channels_kernel<T, D>, grid, dim3(kThreads), sizeof(ChannelShared<D>), stream, job);
}

}  // namespace

template <class T>
void score_channels(const ScoreJob<T>& job, Stream stream) {
  if (job.paged.pages == 0 || job.paged.rows == 0) return;
  if (job.paged.head_dim == 64) return launch_blocks<T, 64>(job, stream);
  if (job.paged.head_dim == 128) return launch_blocks<T, 128>(job, stream);
  launch_blocks<T, 256>(job, stream);
}

template void score_channels(const ScoreJob<half_t>&, Stream);
template void score_channels(const ScoreJob<bfloat16_t>&, Stream);

}  // namespace qb
