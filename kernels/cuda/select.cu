// The best pages of every list, exact on the given fp32 scores, ascending. One block per list: merged scores become
// monotone 32-bit keys, four passes over their bytes find the smallest key that is taken, and a scan in page order
// writes the list. Equal keys are taken from the lower page on; the newest page is always taken where it is forced.
//
// Reads 4 g bytes per page (three times where heads are merged by softmax); keys live in shared memory, or in scratch
// where a text is too long for that.
#include <cmath>

#include "lists.h"

namespace qb {
namespace {

constexpr int kThreads = kListThreads, kBins = 256;
constexpr int kBatch = 4;  // pages of a thread whose scores or keys are on their way at a time
constexpr int kSharedPages = 16384;  // keys up to here stay in 64 KiB of shared memory

struct SelectShared {
  unsigned bins[kBins];
  MergeShared merging;
  ListShared writing;
  unsigned prefix;
  int wanted;
};

QB_DEVICE float merged(const SelectJob& job, const float* scores, int heads, int page, const SelectShared& held) {
  if (job.merge == kMax) {
    float out = scores[page];
    for (int g = 1; g < heads; ++g) {
      const float x = scores[int64_t{g} * job.pages + page];
      out = x > out || x != x ? x : out;
    }
    return out;
  }
  float top = -INFINITY, sum = 0;
  bool unknown = false;
#pragma unroll 4
  for (int g = 0; g < heads; ++g) {
    const float x = known(job.scale * scores[int64_t{g} * job.pages + page]);
    unknown |= x != x;
    top = fmaxf(top, x - held.merging.log_total[g]);
  }
  if (unknown) return NAN;
  if (top == -INFINITY) return top;
#pragma unroll 4
  for (int g = 0; g < heads; ++g)
    sum += expf(known(job.scale * scores[int64_t{g} * job.pages + page]) - held.merging.log_total[g] - top);
  return top + logf(sum);
}

// One head alone ranks by its raw scores, with the same exception.
QB_DEVICE float alone(const SelectJob& job, float score) {
  return job.merge != kSumSoftmax || job.scale * score < INFINITY ? score : NAN;
}

QB_DEVICE void copy_keys(const SelectJob& job, const float* scores, int pages, unsigned* keys) {
  for (int begin = threadIdx.x; begin < pages; begin += kBatch * kThreads) {
    float score[kBatch];
#pragma unroll
    for (int n = 0; n < kBatch; ++n) score[n] = scores[min(begin + n * kThreads, pages - 1)];
#pragma unroll
    for (int n = 0; n < kBatch; ++n)
      if (begin + n * kThreads < pages) keys[begin + n * kThreads] = order_key(alone(job, score[n]));
  }
}

// The smallest key among the `wanted` greatest of `pages`, in held.prefix; in held.wanted how many of its equals to take.
QB_DEVICE void find_threshold(const unsigned* keys, int pages, int wanted, SelectShared& held) {
  if (threadIdx.x == 0) held.prefix = 0, held.wanted = wanted;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) held.bins[bin] = 0;
    __syncthreads();  // the first time round, for the keys too
    const unsigned prefix = held.prefix;
    const int left = held.wanted;
    for (int begin = threadIdx.x; begin < pages; begin += kBatch * kThreads) {
      unsigned key[kBatch];
#pragma unroll
      for (int n = 0; n < kBatch; ++n) key[n] = keys[min(begin + n * kThreads, pages - 1)];
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const bool counts = begin + n * kThreads < pages && (shift == 24 || key[n] >> (shift + 8) == prefix);
        if (counts) atomicAdd(&held.bins[key[n] >> shift & (kBins - 1)], 1u);
      }
    }
    __syncthreads();
    // One warp looks for the bin where the count from above reaches what is wanted; a lane has eight bins.
    if (threadIdx.x < kWarpSize) {
      const int lane = threadIdx.x;
      unsigned own = 0;
      for (int i = 0; i < 8; ++i) own += held.bins[lane * 8 + i];
      unsigned from_here = own;
      for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
        const unsigned more = __shfl_down_sync(kAllLanes, from_here, lanes);
        if (lane + lanes < kWarpSize) from_here += more;
      }
      int above = int(from_here - own);
      if (above < left && int(from_here) >= left) {
        int bin = lane * 8 + 7;
        while (above + int(held.bins[bin]) < left) above += int(held.bins[bin--]);
        held.prefix = prefix << 8 | unsigned(bin);
        held.wanted = left - above;
      }
    }
    __syncthreads();
  }
}

QB_KERNEL __launch_bounds__(kThreads) select_kernel(SelectJob job) {
  begin_kernel();
  SelectShared& held = shared<SelectShared>();
  const int list = blockIdx.x, row = blockIdx.y, lists = gridDim.x, heads = job.query_heads / lists;
  const int size = 1 << job.page_shift, total = (job.lengths[row] + size - 1) >> job.page_shift;
  const int asked = job.row_counts ? job.row_counts[row] : job.count;
  const int wanted = max(min(min(total, asked), job.width), 0);
  const int scored = total - job.force_newest, chosen = max(wanted - job.force_newest, 0);
  const int64_t item = int64_t{row} * lists + list;
  int32_t* out = job.out + item * job.width;
  if (wanted == total) {
    for (int i = threadIdx.x; i < wanted; i += kThreads) out[i] = i;
  } else if (wanted > 0) {
    if (chosen > 0) {
      const float* scores = job.scores + (int64_t{row} * job.query_heads + int64_t{list} * heads) * job.pages;
      unsigned* keys = job.pages <= kSharedPages ? reinterpret_cast<unsigned*>(shared_bytes() + sizeof(SelectShared))
                                                 : job.keys + item * job.pages;
      if (job.merge == kSumSoftmax && heads > 1) log_totals(scores, job.pages, heads, scored, job.scale, held.merging);
      if (heads == 1) {
        copy_keys(job, scores, scored, keys);
      } else {
        for (int page = threadIdx.x; page < scored; page += kThreads)
          keys[page] = order_key(merged(job, scores, heads, page, held));
      }
      find_threshold(keys, scored, chosen, held);
      write_list(keys, scored, held.prefix, held.wanted, out, held.writing, [](int page) { return page; });
    }
    if (job.force_newest && threadIdx.x == 0) out[chosen] = total - 1;
  }
  for (int i = wanted + threadIdx.x; i < job.width; i += kThreads) out[i] = -1;
  if (threadIdx.x == 0) job.counts[item] = wanted;
}

}  // namespace

void select(const SelectJob& job, Stream stream) {
  const int lists = job.merge == kNone ? job.query_heads : job.query_heads / job.group;
  if (job.rows == 0) return;
  const size_t keys = job.pages <= kSharedPages ? sizeof(unsigned) * job.pages : 0;
  launch_dependent(select_kernel, dim3(lists, job.rows), dim3(kThreads), sizeof(SelectShared) + keys, stream, job);
}

}  // namespace qb
