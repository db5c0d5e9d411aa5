// estimate: logits of the entries of listed pages from their codes; and prune, the entries that hold most of the mass.
//   q . k ~ step * sum_d q_d code_d + low * sum_d q_d
//
// Reads D / 2 + 8 bytes per listed entry and KV head, once for all query heads of a list.
#include <omp.h>

#include "questbench/ops.h"

namespace questbench {
namespace {

constexpr int64_t kEstimatePages = 16;  // pages of a list per work item

// Query heads of one list, fp32 in whole blocks of channels, and the sum of each.
template <typename T>
void widen_queries(const T* q, int64_t heads, int64_t dim, int64_t padded, float* wide, float* sums) {
  std::fill_n(wide, heads * padded, 0.0f);
  for (int64_t h = 0; h < heads; ++h) {
    sums[h] = 0;
    for (int64_t d = 0; d < dim; ++d) sums[h] += wide[h * padded + d] = to_float(q[h * dim + d]);
  }
}

struct Room {
  std::vector<float> queries, sums, rows, products;
};

// The pages [first, last) of one list.
template <typename T>
void estimate_pages(const Estimate<T>& job, int64_t row, int64_t list, int64_t first, int64_t last, Room& room) {
  const int64_t size = job.page_size, blocks = code_blocks(job.head_dim), bytes = code_bytes(job.head_dim);
  const int64_t heads = job.heads(), padded = blocks * kCodeChannels, slots = job.width * size;
  const int64_t head = list / (job.lists / job.kv_heads), item = row * job.lists + list;
  const int64_t own = (row * job.kv_heads + head) * job.slots;
  const int32_t* pages = job.pages + item * job.width;
  float* logits = job.logits + (row * job.query_heads + list * heads) * slots;
  for (int64_t at = first; at < last; ++at) {
    const int64_t page = at < job.counts[item] ? pages[at] : 0, entry = own + page * size;
    const int64_t valid = at < job.counts[item] ? std::min(size, job.lengths[row] - page * size) : 0;
    for (int64_t begin = 0; begin < valid; begin += kLanes) {
      const int64_t here = std::min<int64_t>(kLanes, valid - begin);
      float steps[kLanes] = {}, lows[kLanes] = {};
      for (int64_t t = 0; t < here; ++t) {
        widen_codes(job.codes + (entry + begin + t) * bytes, blocks, room.rows.data() + t * padded);
        steps[t] = job.ranges[(entry + begin + t) * 2], lows[t] = job.ranges[(entry + begin + t) * 2 + 1];
      }
      dots<float, 0>(room.rows.data(), padded, static_cast<int>(here), room.queries.data(), padded,
                     static_cast<int>(heads), room.products.data(), kLanes, nullptr, 0);
      for (int64_t h = 0; h < heads; ++h) {
        float* out = logits + h * slots + at * size + begin;
        for (int64_t t = 0; t < here; ++t) {
          const float x = job.scale * (steps[t] * room.products[h * kLanes + t] + lows[t] * room.sums[h]);
          out[t] = job.softcap > 0 ? job.softcap * std::tanh(x / job.softcap) : x;
        }
      }
    }
    for (int64_t h = 0; h < heads; ++h)
      std::fill(logits + h * slots + at * size + valid, logits + h * slots + (at + 1) * size,
                -std::numeric_limits<float>::infinity());
  }
}

}  // namespace

template <typename T>
void estimate(const Estimate<T>& job) {
  const int64_t dim = job.head_dim, padded = code_blocks(dim) * kCodeChannels, heads = job.heads();
  const int64_t parts = (job.width + kEstimatePages - 1) / kEstimatePages, items = job.rows * job.lists;
#pragma omp parallel num_threads(threads_for(job.threads, items * job.width * job.page_size * padded / 2))
  {
    Room room;
    room.queries.resize(heads * padded), room.sums.resize(heads);
    room.rows.resize(kLanes * padded), room.products.resize(heads * kLanes);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < items * parts; ++item) {
      const int64_t row = item / parts / job.lists, list = item / parts % job.lists, first = item % parts * kEstimatePages;
      widen_queries(job.q + (row * job.query_heads + list * heads) * dim, heads, dim, padded, room.queries.data(),
                    room.sums.data());
      estimate_pages(job, row, list, first, std::min(first + kEstimatePages, job.width), room);
    }
  }
}

template void estimate(const Estimate<float>&);
template void estimate(const Estimate<fp16>&);
template void estimate(const Estimate<bf16>&);

void prune(const Prune& job) {
  const int64_t slots = job.width * job.page_size, heads = job.query_heads / job.lists;
#pragma omp parallel num_threads(threads_for(job.threads, job.rows * job.query_heads * slots * 4))
  {
    std::vector<uint32_t> weights(slots + kLanes);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < job.rows * job.lists; ++item) {
      const int64_t row = item / job.lists, list = item % job.lists;
      const int32_t* pages = job.pages + item * job.width;
      const int64_t n = qb::listed_entries(pages, job.counts[item], job.lengths[row], job.page_size);
      int32_t* out = job.tokens + item * slots;
      int64_t taken = 0;
      if (n > 0) {
        mass_weights(job.logits + (row * job.query_heads + list * heads) * slots, slots, static_cast<int>(heads), n,
                     weights.data());
        taken = prune_entries(weights.data(), n, job.p, out);
        for (int64_t i = 0; i < taken; ++i)
          out[i] = static_cast<int32_t>(pages[out[i] / job.page_size] * job.page_size + out[i] % job.page_size);
      }
      job.token_counts[item] = static_cast<int32_t>(taken);
      std::fill(out + taken, out + slots, -1);
    }
  }
}

}  // namespace questbench
