// The smallest set of a list's entries that holds a share of the attention mass, exact in whole numbers (see prune.h). One
// block per list: logits of the list's heads become masses, a search over the bits of a mass finds the least one that is
// taken, and a scan in order writes the list. Every step of the search is one pass over the masses; sums of whole numbers
// are the same in any order.
//
// Reads 4 g bytes per listed entry, three times; masses live in shared memory, or in scratch where a list is too long.
#include <cmath>

#include "lists.h"

namespace qb {
namespace {

constexpr int kSharedEntries = 16384;  // masses up to here stay in 64 KiB of shared memory

struct PruneShared {
  MergeShared merging;
  ListShared writing;
  unsigned sums[2][kListWarps];
  int undefined;
};

// The mass of all entries that weigh at least `least`. Calls take turns with `turn`, so that one barrier is enough.
QB_DEVICE unsigned mass_from(const unsigned* masses, int count, unsigned least, int turn, PruneShared& held) {
  unsigned sum = 0;
#pragma unroll 4
  for (int at = threadIdx.x; at < count; at += kListThreads) {
    const unsigned mass = masses[at];
    sum += mass >= least ? mass & (kUndefinedMass - 1) : 0;
  }
  sum = __reduce_add_sync(kAllLanes, sum);
  unsigned* sums = held.sums[turn % 2];
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < kListWarps; ++i) sum += sums[i];
  return sum;
}

QB_KERNEL __launch_bounds__(kListThreads) prune_kernel(PruneJob job) {
  begin_kernel();
  PruneShared& held = shared<PruneShared>();
  const int list = blockIdx.x, row = blockIdx.y, lists = gridDim.x, heads = job.query_heads / lists;
  const int slots = job.width << job.page_shift, size = 1 << job.page_shift;
  const int64_t item = int64_t{row} * lists + list;
  const int32_t* pages = job.pages + item * job.width;
  const int count = int(listed_entries(pages, job.counts[item], job.lengths[row], size));
  int32_t* out = job.tokens + item * slots;
  int taken = 0;
  if (count > 0) {
    const float* logits = job.logits + (int64_t{row} * job.query_heads + int64_t{list} * heads) * slots;
    unsigned* masses = slots <= kSharedEntries ? reinterpret_cast<unsigned*>(shared_bytes() + sizeof(PruneShared))
                                               : job.masses + item * slots;
    if (threadIdx.x == 0) held.undefined = 0;
    log_totals(logits, slots, heads, count, 1.0f, held.merging);
    const float share = kWholeMass / float(heads);
    for (int at = threadIdx.x; at < count; at += kListThreads) {
      float mass = 0;
#pragma unroll 4
      for (int g = 0; g < heads; ++g) mass += expf(known(logits[int64_t{g} * slots + at]) - held.merging.log_total[g]);
      const bool defined = mass == mass;
      masses[at] = defined ? unsigned(rintf(mass * share)) : kUndefinedMass;
      if (!defined) held.undefined = 1;
    }
    __syncthreads();
    int turn = 0;
    const unsigned total = mass_from(masses, count, 0, turn++, held), target = mass_target(job.p, total);
    unsigned least = 0;
    for (unsigned bit = 1u << 30; bit > 0 && total > 0; bit >>= 1)
      if (mass_from(masses, count, least | bit, turn++, held) >= target) least |= bit;
    int equals = held.undefined ? 0 : 1;
    if (total > 0) equals = int(mass_equals(target, mass_from(masses, count, least + 1, turn, held), least));
    taken = write_list(masses, count, least, equals, out, held.writing, [&](int at) {
      return pages[at >> job.page_shift] << job.page_shift | (at & (size - 1));
    });
  }
  for (int i = taken + int(threadIdx.x); i < slots; i += kListThreads) out[i] = -1;
  if (threadIdx.x == 0) job.token_counts[item] = taken;
}

}  // namespace

void prune(const PruneJob& job, Stream stream) {
  if (job.rows == 0) return;
  const int slots = job.width << job.page_shift;
  const size_t masses = slots <= kSharedEntries ? sizeof(unsigned) * slots : 0;
  launch_dependent(prune_kernel, dim3(job.lists, job.rows), dim3(kListThreads), sizeof(PruneShared) + masses, stream, job);
}

}  // namespace qb
