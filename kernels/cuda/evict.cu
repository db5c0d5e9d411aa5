// Every row that holds capacity + 1 entries drops the candidate with the least mass (or the oldest), in place: the last
// entry moves into its slot. Candidates are not among the sinks and not among the `recent` newest. A block does one KV
// head, or all heads of a row that share their victim; the last block of a row sets its length.
//
// Reads one mass and one position per entry; moves one entry per KV head.
#include <cmath>

#include "launches.h"

namespace qb {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kBatch = 8;  // entries of a thread on their way at a time: 2048 a block

struct Candidate {
  float weight;
  int position, slot;  // slot -1: none
};

struct EvictShared {
  int flag, newest[kWarps];
  Candidate best[kWarps];
};

// Least weight, ties to the oldest.
QB_DEVICE Candidate better(Candidate a, Candidate b) {
  if (a.slot < 0) return b;
  if (b.slot < 0) return a;
  return b.weight < a.weight || (b.weight == a.weight && b.position < a.position) ? b : a;
}

template <class T>
QB_DEVICE int victim(const EvictJob<T>& job, int row, int head, EvictShared& held) {
  const int heads = job.paged.kv_heads, entries = job.capacity + 1;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int32_t* positions = job.positions + (int64_t{row} * heads + head) * job.position_slots;
  // Past the end, the last entry once more: it changes nothing, and no load waits for a branch.
  const auto entry = [&](int begin, int n) { return min(begin + n * kThreads, entries - 1); };
  int newest = positions[0];
  for (int begin = threadIdx.x; begin < entries; begin += kBatch * kThreads) {
#pragma unroll
    for (int n = 0; n < kBatch; ++n) newest = max(newest, positions[entry(begin, n)]);
  }
  newest = __reduce_max_sync(kAllLanes, newest);
  if (lane == 0) held.newest[warp] = newest;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) newest = max(newest, held.newest[i]);
  const int last = newest - job.recent;
  Candidate best{0, 0, -1};
  const int others = job.shared_victim ? heads : 1, from = job.shared_victim ? 0 : head;
  for (int begin = threadIdx.x; begin < entries; begin += kBatch * kThreads) {
    int place[kBatch];
    float weight[kBatch] = {};
#pragma unroll
    for (int n = 0; n < kBatch; ++n) place[n] = positions[entry(begin, n)];
    for (int i = 0; job.mass != nullptr && i < others; ++i) {
      const float* mass = job.mass + (int64_t{row} * heads + from + i) * job.mass_slots;
#pragma unroll
      for (int n = 0; n < kBatch; ++n) weight[n] += mass[entry(begin, n)];
    }
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      if (place[n] < job.sinks || place[n] > last) continue;
      if (weight[n] != weight[n]) weight[n] = INFINITY;
      best = better(best, {weight[n], place[n], entry(begin, n)});
    }
  }
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const Candidate other{__shfl_xor_sync(kAllLanes, best.weight, lanes), __shfl_xor_sync(kAllLanes, best.position, lanes),
                          __shfl_xor_sync(kAllLanes, best.slot, lanes)};
    best = better(best, other);
  }
  if (lane == 0) held.best[warp] = best;
  __syncthreads();
  best = held.best[0];
  for (int i = 1; i < kWarps; ++i) best = better(best, held.best[i]);
  return best.slot;
}

template <class T>
QB_DEVICE void move_last(const EvictJob<T>& job, int row, int head, int slot) {
  const Paged<T>& paged = job.paged;
  const int last = job.capacity, dim = paged.head_dim, inside = paged.page_size - 1;
  const int64_t from = (paged.tile(paged.physical(row, last >> paged.page_shift), head) + (last & inside)) * dim;
  const int64_t to = (paged.tile(paged.physical(row, slot >> paged.page_shift), head) + (slot & inside)) * dim;
  for (int i = threadIdx.x; i < dim / 4; i += kThreads) {
    T* stored = i < dim / 8 ? paged.k : paged.v;
    const int at = i % (dim / 8) * 8;
    store_global(stored + to + at, load_global(stored + from + at));
  }
  if (threadIdx.x == 0) {
    int32_t* positions = job.positions + (int64_t{row} * paged.kv_heads + head) * job.position_slots;
    positions[slot] = positions[last];
    if (job.mass != nullptr) {
      float* mass = job.mass + (int64_t{row} * paged.kv_heads + head) * job.mass_slots;
      mass[slot] = mass[last];
    }
  }
}

template <class T>
QB_KERNEL __launch_bounds__(kThreads) evict_kernel(EvictJob<T> job) {
  begin_kernel();
  EvictShared& held = shared<EvictShared>();
  const int row = blockIdx.y, first = blockIdx.x, heads = job.paged.kv_heads;
  const bool full = job.paged.lengths[row] == job.capacity + 1;
  if (full) {
    const int slot = victim(job, row, first, held);
    const int until = job.shared_victim ? heads : first + 1;
    if (slot >= 0 && slot != job.capacity)
      for (int head = first; head < until; ++head) move_last(job, row, head, slot);
  }
  if (last_to_arrive(job.counters + row, gridDim.x, &held.flag) && threadIdx.x == 0 && full)
    job.paged.lengths[row] = job.capacity;
}

}  // namespace

template <class T>
void evict(const EvictJob<T>& job, Stream stream) {
  if (job.paged.rows == 0) return;
  const dim3 grid(job.shared_victim ? 1 : job.paged.kv_heads, job.paged.rows);
  launch_dependent(evict_kernel<T>, grid, dim3(kThreads), sizeof(EvictShared), stream, job);
}

template void evict(const EvictJob<half_t>&, Stream);
template void evict(const EvictJob<bfloat16_t>&, Stream);

}  // namespace qb
