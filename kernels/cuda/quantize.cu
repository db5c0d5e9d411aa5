// Keys in four bits per channel, in the layout of codes.h. A block owns one page of one KV head, a warp takes an entry at a
// time, and a lane four neighbouring channels of every 128.
//
// Reads 2 D bytes per entry and KV head, writes D / 2 + 8.
#include <cmath>

#include "launches.h"

namespace qb {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kLaneChannels = 4, kPass = kLaneChannels * kWarpSize;  // channels of a lane, of a warp, at a time

struct alignas(8) Four {
  unsigned x[2];
};

template <class T, int D>
QB_DEVICE void quantize_entry(const T* key, unsigned char* codes, float* range) {
  constexpr int kPasses = (D + kPass - 1) / kPass;
  const int lane = threadIdx.x % kWarpSize;
  float x[kPasses][kLaneChannels];
  float low = INFINITY, high = -INFINITY;
  bool undefined = false;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int channel = pass * kPass + lane * kLaneChannels;
    const Four loaded = *reinterpret_cast<const Four*>(key + min(channel, D - kLaneChannels));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Float2 pair = unpack2<T>(loaded.x[i]);
      x[pass][2 * i] = pair.x, x[pass][2 * i + 1] = pair.y;
    }
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      undefined |= !(x[pass][i] - x[pass][i] == 0);
      low = fminf(low, x[pass][i]), high = fmaxf(high, x[pass][i]);
    }
  }
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    low = fminf(low, __shfl_xor_sync(kAllLanes, low, lanes));
    high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, lanes));
  }
  const float step = (high - low) / 15.0f, by = step > 0 ? step : 1.0f;
  undefined = __any_sync(kAllLanes, undefined || !(step - step == 0)) != 0;
  if (lane == 0) range[0] = undefined ? NAN : step, range[1] = undefined ? NAN : low;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int channel = pass * kPass + lane * kLaneChannels;
    unsigned own = 0;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i)
      if (!undefined) own |= unsigned(fminf(rintf((x[pass][i] - low) / by), 15.0f)) << 8 * i;
    const unsigned other = __shfl_xor_sync(kAllLanes, own, 4);  // the channels 16 further
    if (channel % 32 < 16 && channel < D)
      *reinterpret_cast<unsigned*>(codes + channel / 32 * 16 + channel % 32) = own | other << 4;
  }
}

template <class T, int D>
QB_KERNEL __launch_bounds__(kThreads) quantize_kernel(QuantizeJob<T> job) {
  begin_kernel();
  const Paged<T>& paged = job.paged;
  const int head = blockIdx.y, row = blockIdx.z, size = paged.page_size, warp = threadIdx.x / kWarpSize;
  const int length = paged.lengths[row], count = min(job.fresh ? job.fresh[row] : job.incoming, length);
  const int page = ((length - count) >> paged.page_shift) + blockIdx.x;
  const int first = max(length - count, page * size), last = min(length, (page + 1) * size);
  if (first >= last) return;
  const int64_t tile = paged.tile(paged.physical(row, page), head);
  for (int slot = first + warp; slot < last; slot += kWarps) {
    const int64_t entry = (int64_t{row} * paged.kv_heads + head) * job.slots + slot;
    quantize_entry<T, D>(paged.k + (tile + (slot - page * size)) * D, job.codes + entry * (D / 2), job.ranges + entry * 2);
  }
}

}  // namespace

template <class T>
void quantize(const QuantizeJob<T>& job, Stream stream) {
  if (job.incoming == 0 || job.paged.rows == 0) return;
  const int touched = ((job.incoming + job.paged.page_size - 2) >> job.paged.page_shift) + 1;
  const auto kernel = job.paged.head_dim == 64    ? quantize_kernel<T, 64>
                      : job.paged.head_dim == 128 ? quantize_kernel<T, 128>
                                                  : quantize_kernel<T, 256>;
  launch_dependent(kernel, dim3(touched, job.paged.kv_heads, job.paged.rows), dim3(kThreads), 0, stream, job);
}

template void quantize(const QuantizeJob<half_t>&, Stream);
template void quantize(const QuantizeJob<bfloat16_t>&, Stream);

}  // namespace qb
