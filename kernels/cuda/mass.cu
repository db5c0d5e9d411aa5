// Attention mass of every slot: the normalised probabilities, summed over the query heads of a KV head. attend leaves its
// logits and what normalises them; probabilities exist only once all splits are merged.
#include <cmath>

#include "launches.h"

namespace qb {
namespace {

constexpr int kThreads = 256;

QB_KERNEL mass_kernel(MassJob job) {
  begin_kernel();
  const int head = blockIdx.y, row = blockIdx.z, slot = blockIdx.x * kThreads + threadIdx.x;
  if (slot >= job.lengths[row]) return;
  const int64_t first = (int64_t{row} * job.kv_heads + head) * job.group;
  float sum = 0;
  for (int64_t query = first; query < first + job.group; ++query) {
    const float top = job.weights[2 * query], total = job.weights[2 * query + 1];
    const float logit = job.logits[query * job.logit_slots + slot];
    // What was not read has no mass, whatever the others weigh: NaN, or nothing where the list is empty.
    sum += logit == -INFINITY ? 0.0f : exp2f(logit - top) / total;
  }
  float* mass = job.mass + (int64_t{row} * job.kv_heads + head) * job.mass_slots + slot;
  *mass = job.add ? *mass + sum : sum;
}

QB_KERNEL forget_kernel(float* logits, int64_t count) {
  begin_kernel();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += int64_t{gridDim.x} * kThreads)
    logits[i] = -INFINITY;
}

}  // namespace

void mass(const MassJob& job, Stream stream) {
  if (job.rows == 0 || job.logit_slots == 0) return;
  const dim3 grid((job.logit_slots + kThreads - 1) / kThreads, job.kv_heads, job.rows);
  launch_dependent(mass_kernel, grid, dim3(kThreads), 0, stream, job);
}

void forget_logits(float* logits, int64_t count, Stream stream) {
  if (count == 0) return;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  launch_dependent(forget_kernel, dim3(blocks < 4096 ? blocks : 4096), dim3(kThreads), 0, stream, logits, count);
}

}  // namespace qb
