// k, v of each row go to slots lengths .. lengths + new - 1; the bounds of every touched page become exact again, or by
// channel those of every page that is full.
//
// Writes 2 D elements per entry and KV head, and widens 2 D bounds per touched page. Any storage type.
#include <omp.h>

#include <algorithm>
#include <cstring>

#include "questbench/ops.h"
#include "questbench/vector.h"

namespace questbench {
namespace {

// Values that a row of T held, without rounding.
template <typename T>
inline void put(const Vec& x, T* out) {
  float lanes[kLanes];
  store(lanes, x);
  for (int i = 0; i < kLanes; ++i) from_float(lanes[i], out + i);
}
inline void put(const Vec& x, bf16* out) {
  uint32_t lanes[kLanes];
  std::memcpy(lanes, &x, sizeof lanes);
  for (int i = 0; i < kLanes; ++i) out[i].bits = static_cast<uint16_t>(lanes[i] >> 16);
}

// NaN in, NaN out, like torch.amax.
template <typename V>
inline auto above(const V& a, const V& b) {
  return (a > b) | (a != a);
}
template <typename V>
inline auto below(const V& a, const V& b) {
  return (a < b) | (a != a);
}

// Bounds of a page widened by its keys [first, valid); a page that was empty starts from its first key. The compiler makes
// no vector code of it by itself: compared as floats, elements of 16 bits are chosen one by one.
template <typename T>
void widen(const T* keys, int64_t first, int64_t valid, int64_t dim, T* bounds) {
  const T* before_high = first == 0 ? keys : bounds;
  const T* before_low = first == 0 ? keys : bounds + dim;
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    Vec high = load(before_high + d), low = load(before_low + d);
    for (int64_t t = std::max<int64_t>(first, 1); t < valid; ++t) {
      const Vec x = load(keys + t * dim + d);
      high = QB_CHOOSE(above(x, high), x, high);
      low = QB_CHOOSE(below(x, low), x, low);
    }
    put(high, bounds + d);
    put(low, bounds + dim + d);
  }
  for (; d < dim; ++d) {
    T high = before_high[d], low = before_low[d];
    for (int64_t t = std::max<int64_t>(first, 1); t < valid; ++t) {
      const T key = keys[t * dim + d];
      if (above(to_float(key), to_float(high))) high = key;
      if (below(to_float(key), to_float(low))) low = key;
    }
    bounds[d] = high;
    bounds[dim + d] = low;
  }
}

// Bounds of a full page into its lane: read once more, so that an open page needs no bounds.
template <typename T>
void close(const T* keys, int64_t size, int64_t dim, T* lane) {
  T* both = scratch<T>(0, 2 * dim);
  widen(keys, 0, size, dim, both);
  for (int64_t d = 0; d < dim; ++d) {
    lane[2 * d * kLanePages] = both[d];
    lane[(2 * d + 1) * kLanePages] = both[dim + d];
  }
}

template <typename T>
void append_head(const Append<T>& job, int64_t row, int64_t head, int64_t count) {
  const Paged<T>& paged = job.paged;
  const int64_t size = paged.page_size, dim = paged.head_dim, start = paged.lengths[row];
  const T* k = job.k + row * job.k_row + head * job.k_head + (job.incoming - count) * job.k_entry;
  const T* v = job.v + row * job.v_row + head * job.v_head + (job.incoming - count) * job.v_entry;
  for (int64_t done = 0; done < count;) {
    const int64_t slot = start + done, page = slot / size, first = slot % size;
    const int64_t part = std::min(size - first, count - done), tile = paged.tile(row, page, head);
    for (int64_t t = 0; t < part; ++t) {
      std::copy_n(k + (done + t) * job.k_entry, dim, paged.k + tile + (first + t) * dim);
      std::copy_n(v + (done + t) * job.v_entry, dim, paged.v + tile + (first + t) * dim);
    }
    if (paged.bounds != nullptr && paged.by_channel) {
      if (first + part == size) close(paged.k + tile, size, dim, paged.lane_of(row, page, head));
    } else if (paged.bounds != nullptr) {
      widen(paged.k + tile, first, first + part, dim, paged.bounds_of(row, page, head));
    }
    done += part;
  }
}

}  // namespace

template <typename T>
void append(const Append<T>& job) {
  const int64_t heads = job.paged.kv_heads, items = job.paged.rows * heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(job.incoming > 64 ? job.threads : 1)
  for (int64_t item = 0; item < items; ++item) {
    const int64_t row = item / heads;
    append_head(job, row, item % heads, job.fresh ? job.fresh[row] : job.incoming);
  }
  for (int64_t row = 0; row < job.paged.rows; ++row)
    job.paged.lengths[row] += static_cast<int32_t>(job.fresh ? job.fresh[row] : job.incoming);
}

template void append(const Append<float>&);
template void append(const Append<fp16>&);
template void append(const Append<bf16>&);

}  // namespace questbench
