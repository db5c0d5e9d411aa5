// Logits of the entries of listed pages from the codes of their keys:
//   q . k ~ step * sum_d q_d code_d + low * sum_d q_d
// Codes are whole numbers below 16, exact in either storage type, so that both sums are products on the tensor cores, 16
// entries by the query heads of a list. As in score_pages.cu, codes go from global memory straight into fragments: the
// order of a contraction is free, so each lane loads neighbouring bytes and counts them as the channels that the
// instruction expects from it.
//
// Reads D / 2 + 8 bytes per listed entry and KV head, once for all query heads of a list.
#include <cmath>

#include "launches.h"

namespace qb {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize, kTile = 16;

struct alignas(8) Words2 {
  unsigned x[2];
};

// The codes that a lane has of an entry, D / 32 words: 8 or 16 bytes of every 128 channels or less.
template <int D>
struct LaneCodes {
  static constexpr int kWords = D / 32;
  unsigned x[kWords];

  QB_DEVICE void load(const unsigned char* codes, int part) {
    if constexpr (D == 64) {
      const Words2 loaded = *reinterpret_cast<const Words2*>(codes + part * 8);
      x[0] = loaded.x[0], x[1] = loaded.x[1];
    } else {
#pragma unroll
      for (int chunk = 0; chunk < D / 128; ++chunk) {
        const Vec16 loaded = load_global_streaming(codes + chunk * 64 + part * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[chunk * 4 + i] = loaded.x[i];
      }
    }
  }
  // The channel of the low half of a word's first byte; its bytes are neighbours, its high halves 16 channels further.
  static QB_DEVICE int channel(int word, int part) {
    const int byte = D == 64 ? part * 8 + word * 4 : word / 4 * 64 + part * 16 + word % 4 * 4;
    return byte / 16 * 32 + byte % 16;
  }
};

// Two codes, eight bits apart, as a pair of numbers: ors into the mantissa of 2^23, which is faster than a conversion.
template <class T>
QB_DEVICE unsigned code_pair(unsigned word, int shift) {
  const unsigned a = word >> shift & 15u, b = word >> (shift + 8) & 15u;
  return pack2<T>(__uint_as_float(0x4b000000u | a) - 8388608.0f, __uint_as_float(0x4b000000u | b) - 8388608.0f);
}

template <class T, int D, int kTiles>
QB_KERNEL __launch_bounds__(kThreads, 4) estimate_kernel(EstimateJob<T> job) {
  begin_kernel();
  const int list = blockIdx.y, row = blockIdx.z, heads = job.query_heads / job.lists, size = 1 << job.page_shift;
  const int head = list / (job.lists / job.kv_heads), slots = job.width << job.page_shift;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, quad = lane / 4, part = lane % 4;
  const int first = (blockIdx.x * kWarps + warp) * kTile;
  if (first >= slots) return;
  const int64_t item = int64_t{row} * job.lists + list, queries = int64_t{row} * job.query_heads + int64_t{list} * heads;
  const int32_t* pages = job.pages + item * job.width;
  const int listed = int(listed_entries(pages, job.counts[item], job.lengths[row], size));
  float* out = job.logits + queries * slots;
  if (first >= listed) {
    for (int i = lane; i < heads * kTile; i += kWarpSize) {
      const int at = first + i % kTile;
      if (at < slots) out[int64_t{i / kTile} * slots + at] = -INFINITY;
    }
    return;
  }
  LaneCodes<D> codes[2];  // of the entries `quad` and `quad + 8` of the tile; past the end, of the last one
  float step[2], low[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = min(first + quad + 8 * i, listed - 1);
    const int slot = pages[at >> job.page_shift] << job.page_shift | (at & (size - 1));
    const int64_t entry = (int64_t{row} * job.kv_heads + head) * job.slots + slot;
    codes[i].load(job.codes + entry * (D / 2), part);
    step[i] = job.ranges[entry * 2], low[i] = job.ranges[entry * 2 + 1];
  }
  const T* q = job.q + queries * D;
  const unsigned one = pack2<T>(1.0f, 1.0f), ones[4] = {one, one, one, one};
  float sums[kTiles][4] = {}, wholes[kTiles][4] = {};
#pragma unroll
  for (int word = 0; word < LaneCodes<D>::kWords; ++word) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned a[4] = {code_pair<T>(codes[0].x[word], 4 * half), code_pair<T>(codes[1].x[word], 4 * half),
                             code_pair<T>(codes[0].x[word], 4 * half + 16), code_pair<T>(codes[1].x[word], 4 * half + 16)};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int query = tile * 8 + quad;
        Words2 own{};
        if (query < heads)
          own = *reinterpret_cast<const Words2*>(q + query * D + LaneCodes<D>::channel(word, part) + 16 * half);
        const unsigned b[2] = {own.x[0], own.x[1]};
        mma_16x8x16<T>(sums[tile], a, b);
        mma_16x8x16<T>(wholes[tile], ones, b);
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = first + quad + 8 * (i / 2), query = tile * 8 + part * 2 + i % 2;
      if (query >= heads || at >= slots) continue;
      float logit = job.scale * (step[i / 2] * sums[tile][i] + low[i / 2] * wholes[tile][i]);
      if (job.softcap > 0) logit = job.softcap * tanhf(logit / job.softcap);
      out[int64_t{query} * slots + at] = at < listed ? logit : -INFINITY;
    }
  }
}

template <class T, int D>
void launch_tiles(const EstimateJob<T>& job, Stream stream) {
  const int slots = job.width << job.page_shift;
  const dim3 grid((slots + kWarps * kTile - 1) / (kWarps * kTile), job.lists, job.rows);
  const auto kernel = job.query_heads / job.lists > 8 ? estimate_kernel<T, D, 2> : estimate_kernel<T, D, 1>;
  launch_dependent(kernel, grid, dim3(kThreads), 0, stream, job);
}

}  // namespace

template <class T>
void estimate(const EstimateJob<T>& job, int head_dim, Stream stream) {
  if (job.width == 0 || job.rows == 0) return;
  if (head_dim == 64) return launch_tiles<T, 64>(job, stream);
  if (head_dim == 128) return launch_tiles<T, 128>(job, stream);
  launch_tiles<T, 256>(job, stream);
}

template void estimate(const EstimateJob<half_t>&, int, Stream);
template void estimate(const EstimateJob<bfloat16_t>&, int, Stream);

}  // namespace qb
