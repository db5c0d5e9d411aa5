// Drop the candidate with the least mass (or the oldest) of every row that holds capacity + 1 entries, in place.
//
// Reads one mass and one position per entry; writes one entry per KV head.
#include <algorithm>

#include "questbench/ops.h"

namespace questbench {
namespace {

// Slot to drop: least weight among the candidates, ties to the oldest, NaN as the greatest; -1 if nothing may go.
int64_t victim(const int32_t* positions, const float* weights, int64_t entries, int64_t sinks, int64_t recent) {
  int32_t newest = positions[0];
  for (int64_t t = 1; t < entries; ++t) newest = std::max(newest, positions[t]);
  const int64_t last = newest - recent;
  int64_t best = -1;
  float least = 0;
  for (int64_t t = 0; t < entries; ++t) {
    if (positions[t] < sinks || positions[t] > last) continue;
    float weight = weights ? weights[t] : 0.0f;
    if (weight != weight) weight = std::numeric_limits<float>::infinity();
    if (best < 0 || weight < least || (weight == least && positions[t] < positions[best])) {
      best = t;
      least = weight;
    }
  }
  return best;
}

}  // namespace

template <typename T>
void evict(const Evict<T>& job) {
  const Paged<T>& paged = job.paged;
  const int64_t last = job.capacity, entries = job.capacity + 1, dim = paged.head_dim, size = paged.page_size;
  std::vector<float> total(job.shared && job.mass ? entries : 0);
  for (int64_t row = 0; row < paged.rows; ++row) {
    if (paged.lengths[row] != entries) continue;
    int64_t common = -1;
    if (job.shared) {
      const float* weights = nullptr;
      if (job.mass != nullptr) {
        std::fill(total.begin(), total.end(), 0.0f);
        for (int64_t head = 0; head < paged.kv_heads; ++head)
          for (int64_t t = 0; t < entries; ++t)
            total[t] += job.mass[(row * paged.kv_heads + head) * job.mass_slots + t];
        weights = total.data();
      }
      common = victim(job.positions + row * paged.kv_heads * job.position_slots, weights, entries, job.sinks, job.recent);
    }
    for (int64_t head = 0; head < paged.kv_heads; ++head) {
      int32_t* positions = job.positions + (row * paged.kv_heads + head) * job.position_slots;
      float* mass = job.mass ? job.mass + (row * paged.kv_heads + head) * job.mass_slots : nullptr;
      const int64_t slot = job.shared ? common : victim(positions, mass, entries, job.sinks, job.recent);
      if (slot < 0 || slot == last) continue;
      const int64_t source = paged.tile(row, last / size, head) + last % size * dim;
      const int64_t target = paged.tile(row, slot / size, head) + slot % size * dim;
      std::copy_n(paged.k + source, dim, paged.k + target);
      std::copy_n(paged.v + source, dim, paged.v + target);
      positions[slot] = positions[last];
      if (mass != nullptr) mass[slot] = mass[last];
    }
    paged.lengths[row] = static_cast<int32_t>(job.capacity);
  }
}

template void evict(const Evict<float>&);
template void evict(const Evict<fp16>&);
template void evict(const Evict<bf16>&);

}  // namespace questbench
