// k, v of each row go to slots lengths .. lengths + new - 1; the bounds of every touched page become exact: open pages
// included, or by channel those of pages that are full. A block owns one page of one KV head, so that a step and a
// prompt are the same kernel; the last block of a row advances its length. A thread owns two neighbouring channels of the
// keys, or of the values, of its page: what it takes into the bounds is in its registers.
//
// Moves 4 D elements per entry and KV head (read, written). A page that was open before brings its old bounds, 2 D, or by
// channel its older keys when it closes.
#include <cmath>

#include "launches.h"

namespace qb {
namespace {

constexpr int kThreads = 128;
constexpr int kBatch = 4;  // entries that a thread has on their way

// NaN in, NaN out, like torch.amax.
QB_DEVICE float higher(float a, float b) { return b > a || b != b ? b : a; }
QB_DEVICE float lower(float a, float b) { return b < a || b != b ? b : a; }

struct Range {
  Float2 high, low;
  QB_DEVICE void take(Float2 x) {
    high = {higher(high.x, x.x), higher(high.y, x.y)};
    low = {lower(low.x, x.x), lower(low.y, x.y)};
  }
};

// Where the bounds of two neighbouring channels of a page stand: maxima, then minima.
template <class T>
struct BoundsPlace {
  T *high, *low;
  int64_t next;  // from the first channel to the second

  QB_DEVICE BoundsPlace(const Paged<T>& paged, int64_t physical, int head, int d) {
    const int dim = paged.head_dim;
    if (paged.by_channel) {
      high = paged.bounds + ((physical / kLanePages * paged.kv_heads + head) * dim + d) * 2 * kLanePages +
             physical % kLanePages;
      low = high + kLanePages, next = 2 * kLanePages;
    } else {
      high = paged.bounds + (physical * paged.kv_heads + head) * 2 * dim + d;
      low = high + dim, next = 1;
    }
  }
  QB_DEVICE Range load() const {
    return {{to_float(high[0]), to_float(high[next])}, {to_float(low[0]), to_float(low[next])}};
  }
  QB_DEVICE void store(const Range& range) const {
    high[0] = from_float<T>(range.high.x), high[next] = from_float<T>(range.high.y);
    low[0] = from_float<T>(range.low.x), low[next] = from_float<T>(range.low.y);
  }
};

template <class T>
QB_KERNEL __launch_bounds__(kThreads) append_kernel(AppendJob<T> job) {
  begin_kernel();
  const Paged<T>& paged = job.paged;
  const int head = blockIdx.y, row = blockIdx.z, size = paged.page_size, dim = paged.head_dim;
  const int start = paged.lengths[row], count = job.fresh ? job.fresh[row] : job.incoming;
  const int page = (start >> paged.page_shift) + blockIdx.x;
  const int first = max(start, page * size), last = min(start + count, (page + 1) * size);
  if (first < last) {
    const int64_t physical = paged.physical(row, page);
    const int64_t tile = paged.tile(physical, head) * dim;
    const bool bounded = paged.bounds != nullptr && (!paged.by_channel || last == (page + 1) * size);
    for (int i = threadIdx.x; i < dim; i += kThreads) {
      const bool is_key = i < dim / 2;
      const int d = 2 * (is_key ? i : i - dim / 2), older = first - page * size;
      // Entry `slot` of the row is the (slot - start)-th of the last `count` that came in.
      const T* from = is_key ? job.k + row * job.k_row + head * job.k_head : job.v + row * job.v_row + head * job.v_head;
      const int64_t step = is_key ? job.k_entry : job.v_entry;
      from += (int64_t{first} - start + job.incoming - count) * step + d;
      T* to = (is_key ? paged.k : paged.v) + tile + older * dim + d;
      const bool ranged = is_key && bounded;
      Range range{{-INFINITY, -INFINITY}, {INFINITY, INFINITY}};
      if (ranged && older > 0) {
        if (!paged.by_channel) {
          range = BoundsPlace<T>(paged, physical, head, d).load();
        } else {
#pragma unroll 8
          for (int t = 0; t < older; ++t)
            range.take(unpack2<T>(*reinterpret_cast<const unsigned*>(paged.k + tile + t * dim + d)));
        }
      }
      // Loads first: behind a store, the compiler may not move the next one ahead.
      for (int begin = 0; begin < last - first; begin += kBatch) {
        const int here = min(last - first - begin, kBatch);
        T x[kBatch] = {}, y[kBatch] = {};
#pragma unroll
        for (int t = 0; t < kBatch; ++t)
          if (t < here) x[t] = from[(begin + t) * step], y[t] = from[(begin + t) * step + 1];
#pragma unroll
        for (int t = 0; t < kBatch; ++t) {
          if (t >= here) break;
          to[(begin + t) * dim] = x[t], to[(begin + t) * dim + 1] = y[t];
          range.take({to_float(x[t]), to_float(y[t])});
        }
      }
      if (ranged) BoundsPlace<T>(paged, physical, head, d).store(range);
    }
  }
  if (last_to_arrive(job.counters + row, gridDim.x * gridDim.y, &shared<int>()) && threadIdx.x == 0)
    paged.lengths[row] = start + count;
}

}  // namespace

template <class T>
void append(const AppendJob<T>& job, Stream stream) {
  if (job.incoming == 0 || job.paged.rows == 0) return;
  const int touched = ((job.incoming + job.paged.page_size - 2) >> job.paged.page_shift) + 1;
  launch_dependent(append_kernel<T>, dim3(touched, job.paged.kv_heads, job.paged.rows), dim3(kThreads), sizeof(int), stream, job);
}

template void append(const AppendJob<half_t>&, Stream);
template void append(const AppendJob<bfloat16_t>&, Stream);

}  // namespace qb
