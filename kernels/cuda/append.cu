// k, v of each row go to slots lengths .. lengths + new - 1; the bounds of every touched page become exact: open pages
// included, or by channel those of pages that are full. A block owns one page of one KV head, so that a step and a
// prompt are the same kernel; the last block of a row advances its length.
//
// Moves 4 D elements per entry and KV head (read, written), and reads the keys of the touched pages once more.
#include "launches.h"

namespace qb {
namespace {

constexpr int kThreads = 128;

// NaN in, NaN out, like torch.amax.
QB_DEVICE float higher(float a, float b) { return b > a || b != b ? b : a; }
QB_DEVICE float lower(float a, float b) { return b < a || b != b ? b : a; }

template <class T>
QB_DEVICE void write_bounds(const Paged<T>& paged, int64_t physical, int head, int valid) {
  const int dim = paged.head_dim;
  const T* keys = paged.k + paged.tile(physical, head) * dim;
  for (int d = 2 * threadIdx.x; d < dim; d += 2 * kThreads) {
    Float2 high{}, low{};
    for (int t = 0; t < valid; ++t) {
      const Float2 x = unpack2<T>(*reinterpret_cast<const unsigned*>(keys + t * dim + d));
      high = t == 0 ? x : Float2{higher(high.x, x.x), higher(high.y, x.y)};
      low = t == 0 ? x : Float2{lower(low.x, x.x), lower(low.y, x.y)};
    }
    if (paged.by_channel) {
      T* lane = paged.bounds + ((physical / kLanePages * paged.kv_heads + head) * dim + d) * 2 * kLanePages +
                physical % kLanePages;
      lane[0] = from_float<T>(high.x);
      lane[kLanePages] = from_float<T>(low.x);
      lane[2 * kLanePages] = from_float<T>(high.y);
      lane[3 * kLanePages] = from_float<T>(low.y);
    } else {
      T* own = paged.bounds + (physical * paged.kv_heads + head) * 2 * dim + d;
      *reinterpret_cast<unsigned*>(own) = pack2<T>(high.x, high.y);
      *reinterpret_cast<unsigned*>(own + dim) = pack2<T>(low.x, low.y);
    }
  }
}

template <class T>
QB_KERNEL append_kernel(AppendJob<T> job) {
  const Paged<T>& paged = job.paged;
  const int head = blockIdx.y, row = blockIdx.z, size = paged.page_size, dim = paged.head_dim;
  const int start = paged.lengths[row], count = job.fresh ? job.fresh[row] : job.incoming;
  const int page = (start >> paged.page_shift) + blockIdx.x;
  const int first = max(start, page * size), last = min(start + count, (page + 1) * size);
  if (first < last) {
    const int64_t physical = paged.physical(row, page);
    const int64_t tile = (paged.tile(physical, head) - page * int64_t{size}) * dim;
    // Entry `slot` of the row is the (slot - start)-th of the last `count` that came in.
    const int64_t source = job.incoming - count - start;
    const T* k = job.k + row * job.k_row + head * job.k_head;
    const T* v = job.v + row * job.v_row + head * job.v_head;
    const int pairs = dim / 2;
    for (int i = threadIdx.x; i < (last - first) * pairs; i += kThreads) {
      const int slot = first + i / pairs, d = i % pairs * 2;
      const int64_t to = tile + int64_t{slot} * dim + d;
      const T* from_k = k + (slot + source) * job.k_entry + d;
      const T* from_v = v + (slot + source) * job.v_entry + d;
      paged.k[to] = from_k[0], paged.k[to + 1] = from_k[1];
      paged.v[to] = from_v[0], paged.v[to + 1] = from_v[1];
    }
    const bool full = last == (page + 1) * size;
    __syncthreads();
    if (paged.bounds != nullptr && (full || !paged.by_channel)) write_bounds(paged, physical, head, last - page * size);
  }
  if (last_to_arrive(job.counters + row, gridDim.x * gridDim.y, &shared<int>()) && threadIdx.x == 0)
    paged.lengths[row] = start + count;
}

}  // namespace

template <class T>
void append(const AppendJob<T>& job, Stream stream) {
  if (job.incoming == 0 || job.paged.rows == 0) return;
  const int touched = ((job.incoming + job.paged.page_size - 2) >> job.paged.page_shift) + 1;
  launch(append_kernel<T>, dim3(touched, job.paged.kv_heads, job.paged.rows), dim3(kThreads), sizeof(int), stream, job);
}

template void append(const AppendJob<half_t>&, Stream);
template void append(const AppendJob<bfloat16_t>&, Stream);

}  // namespace qb
