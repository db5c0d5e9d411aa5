// score[b, h, page] = sum_d max(q_d max_d, q_d min_d) = [max(q, 0); min(q, 0)] . [max; min], bounds by page: a product
// of length 2 D on the tensor cores, 16 pages by the query heads of one KV head. Bounds go from global memory straight
// into fragments: the order of a contraction is free, so each lane loads 16 neighbouring bytes and counts them as the
// channels that the instruction expects from it.
//
// Reads 2 D elements per page and KV head, once for all query heads of the group.
#include <cmath>

#include "launches.h"

namespace qb {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize, kTile = 16;

// Halves of a register with a sign bit (negative) or without one (positive); the others become zero.
QB_DEVICE unsigned positive_part(unsigned both) {
  return (both & 0x8000u ? 0u : both & 0xffffu) | (both & 0x80000000u ? 0u : both & 0xffff0000u);
}
QB_DEVICE unsigned negative_part(unsigned both) {
  return (both & 0x8000u ? both & 0xffffu : 0u) | (both & 0x80000000u ? both & 0xffff0000u : 0u);
}

// By the definition, where 0 times an infinite bound made the product form undefined.
template <class T>
QB_DEVICE float by_definition(const T* q, const T* bounds, int dim) {
  float sum = 0;
  for (int d = 0; d < dim; ++d) {
    const float x = to_float(q[d]), a = x * to_float(bounds[d]), b = x * to_float(bounds[dim + d]);
    sum += b > a || b != b ? b : a;
  }
  return sum;
}

template <class T, int D, int kTiles>
QB_KERNEL __launch_bounds__(kThreads) score_pages_kernel(ScoreJob<T> job) {
  constexpr int kChunks = D / 32;
  constexpr int kSides = D <= 128 ? 2 : 1;  // maxima and minima are on their way together where registers allow it
  begin_kernel();
  const Paged<T>& paged = job.paged;
  const int head = blockIdx.y, row = blockIdx.z, group = job.query_heads / paged.kv_heads;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, quad = lane / 4, part = lane % 4;
  const int first = (blockIdx.x * kWarps + warp) * kTile;
  const int scored = paged.pages_of(row) - job.skip_newest;
  float* out = job.scores + (int64_t{row} * job.query_heads + int64_t{head} * group) * paged.pages;
  if (first >= paged.pages) return;
  if (first >= scored) {
    for (int i = lane; i < group * kTile; i += kWarpSize) {
      const int page = first + i % kTile;
      if (page < paged.pages) out[int64_t{i / kTile} * paged.pages + page] = -INFINITY;
    }
    return;
  }
  const T* bounds[2];  // of the pages `quad` and `quad + 8` of the tile; past the end, of the last one
  for (int i = 0; i < 2; ++i) {
    const int page = min(first + quad + 8 * i, scored - 1);
    bounds[i] = paged.bounds + (paged.physical(row, page) * paged.kv_heads + head) * 2 * D;
  }
  const T* queries = job.q + (int64_t{row} * job.query_heads + int64_t{head} * group) * D;
  float sums[kTiles][4] = {};
#pragma unroll
  for (int begin = 0; begin < 2; begin += kSides) {
    Vec16 loaded[kSides][2][kChunks];
#pragma unroll
    for (int at = 0; at < kSides; ++at)
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          loaded[at][i][chunk] = load_global_streaming(bounds[i] + (begin + at) * D + chunk * 32 + part * 8);
#pragma unroll
    for (int at = 0; at < kSides; ++at) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int query = tile * 8 + quad;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
          Vec16 q{};
          if (query < group) q = load_global(queries + query * D + chunk * 32 + part * 8);
#pragma unroll
          for (int i = 0; i < 4; ++i) q.x[i] = begin + at == 0 ? positive_part(q.x[i]) : negative_part(q.x[i]);
          const Vec16 &low = loaded[at][0][chunk], &high = loaded[at][1][chunk];  // pages `quad` and `quad + 8`
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const unsigned a[4] = {low.x[2 * half], high.x[2 * half], low.x[2 * half + 1], high.x[2 * half + 1]};
            const unsigned b[2] = {q.x[2 * half], q.x[2 * half + 1]};
            mma_16x8x16<T>(sums[tile], a, b);
          }
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int page = first + quad + 8 * (i / 2), query = tile * 8 + part * 2 + i % 2;
      if (query >= group || page >= paged.pages) continue;
      float sum = sums[tile][i];
      if (page >= scored) {
        sum = -INFINITY;
      } else if (sum != sum) {
        sum = by_definition(queries + query * D, bounds[i / 2], D);
      }
      out[int64_t{query} * paged.pages + page] = sum;
    }
  }
}

template <class T, int D>
void launch_tiles(const ScoreJob<T>& job, Stream stream) {
  const int blocks = (job.paged.pages + kWarps * kTile - 1) / (kWarps * kTile);
  const dim3 grid(blocks, job.paged.kv_heads, job.paged.rows);
  const auto kernel =
      job.query_heads / job.paged.kv_heads > 8 ? score_pages_kernel<T, D, 2> : score_pages_kernel<T, D, 1>;
  launch_dependent(kernel, grid, dim3(kThreads), 0, stream, job);
}

}  // namespace

template <class T>
void score_pages(const ScoreJob<T>& job, Stream stream) {
  if (job.paged.pages == 0 || job.paged.rows == 0) return;
  if (job.paged.head_dim == 64) return launch_tiles<T, 64>(job, stream);
  if (job.paged.head_dim == 128) return launch_tiles<T, 128>(job, stream);
  launch_tiles<T, 256>(job, stream);
}

template void score_pages(const ScoreJob<half_t>&, Stream);
template void score_pages(const ScoreJob<bfloat16_t>&, Stream);

}  // namespace qb
