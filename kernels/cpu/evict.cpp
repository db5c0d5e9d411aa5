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

constexpr int64_t kBlock = 64;  // entries that share a minimum

// Slot to drop: least weight among the candidates, ties to the oldest, NaN as the greatest; -1 if nothing may go. Without
// weights an entry weighs its position: the oldest goes.
template <bool kWeights>
int64_t victim(const int32_t* positions, const float* weights, int64_t entries, int64_t sinks, int64_t recent) {
  int32_t newest = positions[0];
  for (int64_t t = 1; t < entries; ++t) newest = std::max(newest, positions[t]);
  const int32_t from = static_cast<int32_t>(std::min<int64_t>(sinks, kNever));
  const int32_t last = static_cast<int32_t>(std::max<int64_t>(newest - recent, -1));
  const auto rank = [&](int64_t t) {
    if constexpr (kWeights) return rank_of(positions[t], weights[t], from, last);
    return (positions[t] >= from) & (positions[t] <= last) ? positions[t] : kNever;
  };
  // Minima of blocks, so that only blocks with the least of all are looked at once more.
  thread_local std::vector<int32_t> minima;
  minima.resize((entries + kBlock - 1) / kBlock);
  int32_t least = kNever;
  for (int64_t block = 0; block * kBlock < entries; ++block) {
    int32_t own = kNever;
    const int64_t end = std::min((block + 1) * kBlock, entries);
    for (int64_t t = block * kBlock; t < end; ++t) own = std::min(own, rank(t));
    minima[block] = own;
    least = std::min(least, own);
  }
  if (least == kNever) return -1;
  int64_t found = -1;
  for (int64_t block = 0; block * kBlock < entries; ++block) {
    if (minima[block] != least) continue;
    const int64_t end = std::min((block + 1) * kBlock, entries);
    for (int64_t t = block * kBlock; t < end; ++t)
      if (rank(t) == least && (found < 0 || positions[t] < positions[found])) found = t;
  }
  return found;
}

int64_t victim(const int32_t* positions, const float* weights, int64_t entries, int64_t sinks, int64_t recent) {
  return weights ? victim<true>(positions, weights, entries, sinks, recent)
                 : victim<false>(positions, nullptr, entries, sinks, recent);
}

// The last entry takes the slot of the victim.
template <typename T>
void replace(const Evict<T>& job, int64_t row, int64_t head, int64_t slot) {
  const Paged<T>& paged = job.paged;
  const int64_t last = job.capacity, dim = paged.head_dim, size = paged.page_size;
  if (slot < 0 || slot == last) return;
  const int64_t source = paged.tile(row, last / size, head) + last % size * dim;
  const int64_t target = paged.tile(row, slot / size, head) + slot % size * dim;
  std::copy_n(paged.k + source, dim, paged.k + target);
  std::copy_n(paged.v + source, dim, paged.v + target);
  const int64_t own = row * paged.kv_heads + head;
  job.positions[own * job.position_slots + slot] = job.positions[own * job.position_slots + last];
  if (job.mass != nullptr) job.mass[own * job.mass_slots + slot] = job.mass[own * job.mass_slots + last];
}

// One victim for all heads of a row, by the mass summed over them.
template <typename T>
int64_t common_victim(const Evict<T>& job, int64_t row) {
  const int64_t entries = job.capacity + 1, heads = job.paged.kv_heads;
  const float* weights = nullptr;
  thread_local std::vector<float> total;
  if (job.mass != nullptr) {
    total.assign(entries, 0.0f);
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t t = 0; t < entries; ++t) total[t] += job.mass[(row * heads + head) * job.mass_slots + t];
    weights = total.data();
  }
  return victim(job.positions + row * heads * job.position_slots, weights, entries, job.sinks, job.recent);
}

}  // namespace

template <typename T>
void evict(const Evict<T>& job) {
  const Paged<T>& paged = job.paged;
  const int64_t entries = job.capacity + 1, heads = paged.kv_heads;
  std::vector<int64_t> common(job.shared ? paged.rows : 0);
  for (int64_t row = 0; job.shared && row < paged.rows; ++row)
    if (paged.lengths[row] == entries) common[row] = common_victim(job, row);
  const int64_t bytes = job.shared ? paged.rows * heads * paged.head_dim * int64_t{sizeof(T)}
                                   : paged.rows * heads * entries * 8;
#pragma omp parallel for schedule(static) num_threads(threads_for(job.threads, bytes))
  for (int64_t item = 0; item < paged.rows * heads; ++item) {
    const int64_t row = item / heads, head = item % heads;
    if (paged.lengths[row] != entries) continue;
    const float* mass = job.mass ? job.mass + item * job.mass_slots : nullptr;
    const int64_t slot = job.shared ? common[row]
                                    : victim(job.positions + item * job.position_slots, mass, entries, job.sinks, job.recent);
    replace(job, row, head, slot);
  }
  for (int64_t row = 0; row < paged.rows; ++row)
    if (paged.lengths[row] == entries) paged.lengths[row] = static_cast<int32_t>(job.capacity);
}

template void evict(const Evict<float>&);
template void evict(const Evict<fp16>&);
template void evict(const Evict<bf16>&);

}  // namespace questbench
