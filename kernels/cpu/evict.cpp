// Drop the candidate with the least mass (or the oldest) of every row that holds capacity + 1 entries, in place.
//
// Reads one mass and one position per entry; writes one entry per KV head.
#include <algorithm>
#include <cstring>
#include <limits>

#include "questbench/ops.h"

namespace questbench {
namespace {

constexpr int32_t kNever = std::numeric_limits<int32_t>::max();

// A weight as a whole number that compares like it: NaN as the greatest weight, kNever for what may not go. Branch-free,
// so that loops over it become vector code.
inline int32_t rank_of(int32_t position, float weight, int32_t sinks, int32_t last) {
  weight = (weight != weight ? std::numeric_limits<float>::infinity() : weight) + 0.0f;  // -0 becomes +0
  int32_t bits;
  std::memcpy(&bits, &weight, sizeof bits);
  const int32_t rank = bits ^ ((bits >> 31) & 0x7fffffff);
  return (position >= sinks) & (position <= last) ? rank : kNever;
}

// Slot to drop: least weight among the candidates, ties to the oldest, NaN as the greatest; -1 if nothing may go.
template <bool kWeights>
int64_t victim(const int32_t* positions, const float* weights, int64_t entries, int64_t sinks, int64_t recent) {
  int32_t newest = positions[0];
  for (int64_t t = 1; t < entries; ++t) newest = std::max(newest, positions[t]);
  const int32_t from = static_cast<int32_t>(std::min<int64_t>(sinks, kNever));
  const int32_t last = static_cast<int32_t>(std::max<int64_t>(newest - recent, -1));
  const auto rank = [&](int64_t t) { return rank_of(positions[t], kWeights ? weights[t] : 0.0f, from, last); };
  int32_t least = kNever, oldest = kNever;
  for (int64_t t = 0; t < entries; ++t) least = std::min(least, rank(t));
  if (least == kNever) return -1;
  for (int64_t t = 0; t < entries; ++t) oldest = std::min(oldest, rank(t) == least ? positions[t] : kNever);
  for (int64_t t = 0; t < entries; ++t)
    if (positions[t] == oldest && rank(t) == least) return t;
  return -1;
}

int64_t victim(const int32_t* positions, const float* weights, int64_t entries, int64_t sinks, int64_t recent) {
  return weights ? victim<true>(positions, weights, entries, sinks, recent)
                 : victim<false>(positions, nullptr, entries, sinks, recent);
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
