// out = sum_t p_t v_t,  p = softmax(cap(scale q . k_t)) over the entries read, plus a sink logit without a value.
//
// A block takes one split of one list of pages of one KV head, for all query heads that share the list; its warps take
// tiles of 16 entries in turn, each from a ring of its own that asynchronous copies fill ahead. Warps are merged in
// shared memory, splits by the last block of a list to arrive, in order: no result depends on the schedule.
//
// Reads 2 D elements per entry and list, keys and values once.
#include "attend_tile.h"

namespace qb {
namespace {

constexpr float kLowest = -3.4028234663852886e38f;
constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
// Tiles of a warp in shared memory: 4 warps hold 48 to 64 KiB of entries in flight.
constexpr int stages_for(int dim) { return dim == 64 ? 4 : dim == 128 ? 3 : 2; }

template <class T, int D>
struct AttendShared {
  static constexpr int kStages = stages_for(D);
  struct Tile {
    T k[kTile * D], v[kTile * D];
  };
  T q[kTile * D], prefix_q[kTile * D];
  // The tiles; when all are read, the sums of each warp.
  union Ring {
    Tile tiles[kWarps][kStages];
    float acc[kWarps][kTile][D];
    float shares[kTile][kMaxSplits];
  } ring;
  int slots[kWarps][kStages][kTile];  // -1: no entry
  float top[kWarps][kTile], total[kWarps][kTile];
  int flag;
};

// Which part of which list this block has.
struct Place {
  int split, list, row, heads, head, first_query, entries, listed;
  int64_t item;
};

template <class T>
QB_DEVICE Place place_of(const AttendJob<T>& job) {
  Place at;
  at.split = blockIdx.x, at.list = blockIdx.y, at.row = blockIdx.z;
  at.heads = job.query_heads / job.lists;
  at.first_query = at.list * at.heads;
  at.head = at.first_query / (job.query_heads / job.paged.kv_heads);
  at.item = int64_t{at.row} * job.lists + at.list;
  at.listed = job.pages ? job.counts[at.item] : job.paged.pages_of(at.row);
  at.entries = job.pages ? at.listed << job.list_shift : job.paged.lengths[at.row];
  return at;
}

// Where entry `lane % 16` of a tile lies.
struct Source {
  unsigned entry;  // counted over the pool
  int slot;        // in its row, -1: none
};

template <class T>
QB_DEVICE Source locate(const AttendJob<T>& job, const Place& at, int tile) {
  const Paged<T>& paged = job.paged;
  const int entry = tile * kTile + int(threadIdx.x % kTile), listed = entry >> job.list_shift;
  if (listed >= at.listed) return {0, -1};
  const int unit = job.pages ? job.pages[at.item * job.width + listed] : listed;
  const int slot = (unit << job.list_shift) + (entry & ((1 << job.list_shift) - 1));
  if (slot >= paged.lengths[at.row]) return {0, -1};
  const unsigned page = unsigned(paged.tile(paged.physical(at.row, slot >> paged.page_shift), at.head));
  return {page + (slot & (paged.page_size - 1)), slot};
}

template <class T, int D>
QB_DEVICE void fetch(const AttendJob<T>& job, const Source& from, typename AttendShared<T, D>::Tile& tile, int* slots) {
  constexpr int kPieces = D / 8;
  const int lane = threadIdx.x % kWarpSize;
  if (lane < kTile) slots[lane] = from.slot;
#pragma unroll
  for (int i = 0; i < kTile * kPieces / kWarpSize; ++i) {
    const int row = (i * kWarpSize + lane) / kPieces, piece = lane % kPieces;
    const bool valid = __shfl_sync(kAllLanes, from.slot, row) >= 0;
    const int64_t offset = int64_t{__shfl_sync(kAllLanes, from.entry, row)} * D + piece * 8;
    copy_async16(tile.k + piece_at<D>(row, piece), job.paged.k + offset, valid);
    copy_async16(tile.v + piece_at<D>(row, piece), job.paged.v + offset, valid);
  }
}

// Scaled, capped, in powers of two; -inf for what is no entry.
template <class T>
QB_DEVICE float logit(const AttendJob<T>& job, float product, int slot) {
  if (slot < 0) return -INFINITY;
  float x = product * job.scale;
  if (job.softcap > 0) x = job.softcap * tanhf(x / job.softcap);
  return x * kLog2e;
}

template <class T, int D>
QB_DEVICE void attend_tile(const AttendJob<T>& job, const Place& at, const AttendShared<T, D>& held,
                           const typename AttendShared<T, D>::Tile& tile, const int* slots, Running<D>& sums) {
  const int lane = threadIdx.x % kWarpSize, quad = lane / 4, part = lane % 4;
  float s[2][4];
  products<T, D>(held.q, tile.k, s);
  const int own = slots[lane % kTile];
  if (job.prefix_q != nullptr && __any_sync(kAllLanes, own >= 0 && own < job.prefix)) {
    float shifted[2][4];
    products<T, D>(held.prefix_q, tile.k, shifted);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int slot = slots[i / 4 * 8 + part * 2 + i % 2];
      if (slot >= 0 && slot < job.prefix) s[i / 4][i % 4] = shifted[i / 4][i % 4];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int slot = slots[i / 4 * 8 + part * 2 + i % 2], query = quad + i % 4 / 2 * 8;
    s[i / 4][i % 4] = logit(job, s[i / 4][i % 4], slot);
    // -inf is for what was not read; a logit of -inf that was is as good as the lowest number.
    if (job.logits != nullptr && slot >= 0 && query < at.heads)
      job.logits[(int64_t{at.row} * job.query_heads + at.first_query + query) * job.logit_slots + slot] =
          s[i / 4][i % 4] == -INFINITY ? kLowest : s[i / 4][i % 4];
  }
  if (job.visits != nullptr && lane < kTile && own >= 0)
    atomicAdd(job.visits + (int64_t{at.row} * job.paged.kv_heads + at.head) * job.visit_slots + own, at.heads);
  sums.take(s);
  add_values<T, D>(tile.v, s, sums.acc);
}

template <class T, int D>
QB_DEVICE void load_queries(const AttendJob<T>& job, const Place& at, const T* from, T* to) {
  const T* own = from + (int64_t{at.row} * job.query_heads + at.first_query) * D;
  for (int i = threadIdx.x; i < kTile * D / 8; i += kThreads) {
    const int row = i / (D / 8), piece = i % (D / 8);
    Vec16 loaded{};
    if (row < at.heads) loaded = load_global(own + row * D + piece * 8);
    *reinterpret_cast<Vec16*>(to + piece_at<D>(row, piece)) = loaded;
  }
}

// `merged` as one element of the output.
template <class T>
QB_DEVICE void finish(const AttendJob<T>& job, const Place& at, int head, int d, const Part& merged) {
  const int dim = job.paged.head_dim, query = at.first_query + head;
  const int64_t out = int64_t{at.row} * job.query_heads + query;
  job.out[out * dim + d] = from_float<T>(at.entries == 0 ? 0.0f : merged.value / merged.total);
  if (d != 0) return;
  const float top = merged.top == -INFINITY ? 0 : merged.top;
  if (job.weights != nullptr) job.weights[2 * out] = top, job.weights[2 * out + 1] = merged.total;
  if (job.lse != nullptr) job.lse[out] = (top + log2f(merged.total)) / kLog2e;
}

// The last block of a list merges what all its splits have left. Every greatest logit and sum is fetched once, at once,
// and then the values, four channels a thread: two trips to memory, however many splits.
template <class T, int D>
QB_DEVICE void merge_splits(const AttendJob<T>& job, const Place& at, AttendShared<T, D>& held) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t first = at.item * job.splits * at.heads;
  for (int head = warp; head < at.heads; head += kWarps) {
    const float* sums = job.partial_sums + 2 * (first + head);
    const float sink = job.sinks ? job.sinks[at.first_query + head] * kLog2e : -INFINITY;
    constexpr int kEach = kMaxSplits / kWarpSize;
    float tops[kEach], totals[kEach], top = sink;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int split = i * kWarpSize + lane;
      tops[i] = -INFINITY, totals[i] = 0;
      if (split < job.splits) tops[i] = sums[2 * split * at.heads], totals[i] = sums[2 * split * at.heads + 1];
      top = fmaxf(top, tops[i]);
    }
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, lanes));
    const float base = top == -INFINITY ? 0.0f : top;
    float total = lane == 0 ? exp2f(sink - base) : 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float weight = part_weight(tops[i], totals[i], base);
      if (i * kWarpSize + lane < job.splits) held.ring.shares[head][i * kWarpSize + lane] = weight;
      if (!(weight < 0)) total += weight * totals[i];
    }
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) total += __shfl_xor_sync(kAllLanes, total, lanes);
    if (lane == 0) held.top[0][head] = top, held.total[0][head] = total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < at.heads * D / 4; i += kThreads) {
    const int head = i / (D / 4), d = i % (D / 4) * 4;
    const float* values = job.partial + (first + head) * D + d;
    float sum[4] = {};
#pragma unroll 8
    for (int split = 0; split < job.splits; ++split) {
      const Vec16 value = load_global(values + int64_t{split} * at.heads * D);
      const float weight = held.ring.shares[head][split];
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[c] += weight < 0 ? 0.0f : weight * __uint_as_float(value.x[c]);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) finish(job, at, head, d + c, {held.top[0][head], held.total[0][head], sum[c]});
  }
}

template <class T, int D>
QB_KERNEL __launch_bounds__(kThreads) attend_kernel(AttendJob<T> job) {
  begin_kernel();
  using Shared = AttendShared<T, D>;
  constexpr int kStages = Shared::kStages;
  Shared& held = shared<Shared>();
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize, quad = lane / 4, part = lane % 4;
  const Place at = place_of(job);
  const int64_t tiles = (at.entries + kTile - 1) / kTile;
  const int first = share_begin(tiles, at.split, job.splits) + warp, last = share_begin(tiles, at.split + 1, job.splits);
  const int count = first < last ? (last - first + kWarps - 1) / kWarps : 0;
  Source next = count > 0 ? locate(job, at, first) : Source{0, -1};
  load_queries<T, D>(job, at, job.q, held.q);
  if (job.prefix_q != nullptr) load_queries<T, D>(job, at, job.prefix_q, held.prefix_q);
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < count) fetch<T, D>(job, next, held.ring.tiles[warp][i], held.slots[warp][i]);
    copy_commit();
    if (i + 1 < count) next = locate(job, at, first + (i + 1) * kWarps);
  }
  __syncthreads();
  Running<D> sums;
  for (int i = 0; i < count; ++i) {
    copy_wait<kStages - 2>();
    __syncwarp();
    const int ahead = i + kStages - 1;
    if (ahead < count) fetch<T, D>(job, next, held.ring.tiles[warp][ahead % kStages], held.slots[warp][ahead % kStages]);
    copy_commit();
    if (ahead + 1 < count) next = locate(job, at, first + (ahead + 1) * kWarps);
    attend_tile<T, D>(job, at, held, held.ring.tiles[warp][i % kStages], held.slots[warp][i % kStages], sums);
  }
  copy_wait<0>();
  __syncthreads();
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const int head = quad + 8 * side;
    float total = sums.total[side];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    if (head >= at.heads) continue;
    if (part == 0) held.top[warp][head] = sums.top[side], held.total[warp][head] = total;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      held.ring.acc[warp][head][n * 8 + part * 2] = sums.acc[n][2 * side];
      held.ring.acc[warp][head][n * 8 + part * 2 + 1] = sums.acc[n][2 * side + 1];
    }
  }
  __syncthreads();
  const bool alone = job.splits == 1;
  for (int i = threadIdx.x; i < at.heads * D; i += kThreads) {
    const int head = i / D, d = i % D;
    const float sink = alone && job.sinks ? job.sinks[at.first_query + head] * kLog2e : -INFINITY;
    const Part merged = merge(kWarps, sink, [&](int w) {
      return Part{held.top[w][head], held.total[w][head], held.ring.acc[w][head][d]};
    });
    if (alone) {
      finish(job, at, head, d, merged);
      continue;
    }
    const int64_t own = (at.item * job.splits + at.split) * at.heads + head;
    job.partial[own * D + d] = merged.value;
    if (d == 0) job.partial_sums[2 * own] = merged.top, job.partial_sums[2 * own + 1] = merged.total;
  }
  if (alone || !last_to_arrive(job.counters + at.item, job.splits, &held.flag)) return;
  merge_splits(job, at, held);
}

template <class T, int D>
void launch_splits(const AttendJob<T>& job, Stream stream) {
  const dim3 grid(job.splits, job.lists, job.paged.rows);
  launch_dependent(attend_kernel<T, D>, grid, dim3(kThreads), sizeof(AttendShared<T, D>), stream, job);
}

}  // namespace

template <class T>
void attend(const AttendJob<T>& job, Stream stream) {
  if (job.paged.rows == 0) return;
  if (job.paged.head_dim == 64) return launch_splits<T, 64>(job, stream);
  if (job.paged.head_dim == 128) return launch_splits<T, 128>(job, stream);
  launch_splits<T, 256>(job, stream);
}

template void attend(const AttendJob<half_t>&, Stream);
template void attend(const AttendJob<bfloat16_t>&, Stream);

}  // namespace qb
