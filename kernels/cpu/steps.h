// score, attend and the fused step as templates; one file per storage type instantiates them, so that they compile side
// by side.
#pragma once

#include <omp.h>

#include "questbench/ops.h"
#include "questbench/score.h"
#include "questbench/score_channels.h"

namespace questbench {

// The queries as scoring wants them: split by sign beside bounds by page, fp32 beside bounds by channel.
template <typename T>
const void* queries_of(const Score<T>& job) {
  const int64_t dim = job.paged.head_dim, heads = job.paged.rows * job.query_heads;
  if (!job.paged.by_channel) {
    Query<T>* signs = scratch<Query<T>>(0, heads * query_width(2 * dim));
    split_signs(job.q, heads, dim, signs);
    return signs;
  }
  float* wide = scratch<float>(0, heads * dim + kChannelsAhead);
  for (int64_t i = 0; i < heads * dim; ++i) wide[i] = to_float(job.q[i]);
  std::fill_n(wide + heads * dim, kChannelsAhead, 0.0f);
  return wide;
}

template <typename T, int D>
void score_items(const Score<T>& job, const void* queries) {
  const Paged<T>& paged = job.paged;
  const int64_t blocks = (job.pages + kScorePages - 1) / kScorePages, dim = paged.head_dim;
  const int group = static_cast<int>(job.query_heads / paged.kv_heads);
#pragma omp for schedule(dynamic, 1)
  for (int64_t item = 0; item < paged.rows * blocks; ++item) {
    const int64_t row = item / blocks, first = item % blocks * kScorePages, head = row * job.query_heads;
    const int64_t last = std::min(first + kScorePages, job.pages);
    const int64_t scored = paged.pages_of(row) - (job.skip_newest ? 1 : 0);
    float* scores = job.scores + head * job.pages;
    if (paged.by_channel) {
      const float* q = static_cast<const float*>(queries) + head * dim;
      score_pages_by_channel(paged, row, first, last, scored, q, group, scores, job.pages);
    } else {
      const Query<T>* q = static_cast<const Query<T>*>(queries) + head * query_width(2 * dim);
      score_pages<T, D>(paged, row, first, last, scored, q, group, scores, job.pages);
    }
  }
}

template <typename T>
void prepare(Attend<T>& job) {
  job.choice = chosen[kind_of(job.pages != nullptr, job.heads() > 1)];
  int64_t longest = 0;
  for (int64_t row = 0; row < job.paged.rows; ++row)
    longest = std::max<int64_t>(longest, job.tokens ? job.paged.lengths[row] : job.paged.pages_of(row));
  if (job.pages) longest = std::min(longest, job.width);
  job.chunks = std::max<int64_t>(1, (longest + job.chunk_pages() - 1) / job.chunk_pages());
  const int64_t parts = job.items() * job.heads();
  job.partial_out = scratch<float>(1, parts * sums_width(job.paged.head_dim));
  job.partial_max = scratch<float>(2, parts);
  job.partial_sum = scratch<float>(3, parts);
  job.weights = job.mass ? scratch<float>(4, parts * kChunk) : nullptr;
}

template <typename T, int D>
void attend_items(const Attend<T>& job) {
  const int threads = omp_get_num_threads();
  const int64_t wide = job.wide(threads), heads = wide * job.heads();
  float* logits = scratch<float>(8, heads * (kChunk + kLanes));
  T* rounded = scratch<T>(9, kPairs<T> ? heads * (kChunk + kLanes) : 0);
  std::vector<Query<T>> query(heads * query_width(job.paged.head_dim));
  std::vector<float> factors(job.chunks);
  std::vector<T> gathered(job.tokens ? kLanes * job.paged.head_dim : 0);
#pragma omp for schedule(dynamic, 1)
  for (int64_t item = 0; item < job.items() / wide; ++item)
    attend_chunk<T, D>(job, item, threads, wide, logits, rounded, query.data(), gathered.data());
#pragma omp for schedule(static)
  for (int64_t item = 0; item < job.paged.rows * job.query_heads; ++item)
    merge_chunks(job, item / job.query_heads, item % job.query_heads, factors.data());
  if (job.mass != nullptr) {
#pragma omp for schedule(static)
    for (int64_t item = 0; item < job.paged.rows * job.paged.kv_heads; ++item)
      write_mass(job, item / job.paged.kv_heads, item % job.paged.kv_heads, factors.data());
  }
}

template <typename T>
void score(const Score<T>& job) {
  const void* queries = queries_of(job);
  const int64_t bytes = job.paged.rows * job.pages * job.paged.kv_heads * 2 * job.paged.head_dim * sizeof(T);
  with_head_dim(job.paged.head_dim, [&]<int D>() {
#pragma omp parallel num_threads(threads_for(job.threads, bytes))
    score_items<T, D>(job, queries);
  });
}

template <typename T>
void attend(Attend<T>& job, int threads) {
  prepare(job);
  const int64_t bytes = job.items() * job.chunk() * 2 * job.paged.head_dim * sizeof(T);
  with_head_dim(job.paged.head_dim, [&]<int D>() {
#pragma omp parallel num_threads(threads_for(threads, bytes))
    attend_items<T, D>(job);
  });
}

template <typename T>
void attend_top(const Score<T>& scoring, const Select& selecting, Attend<T>& attending) {
  const void* queries = queries_of(scoring);
  prepare(attending);
  const int64_t bytes = attending.items() * attending.chunk() * 2 * attending.paged.head_dim * sizeof(T);
  with_head_dim(attending.paged.head_dim, [&]<int D>() {
#pragma omp parallel num_threads(threads_for(scoring.threads, bytes))
    {
      score_items<T, D>(scoring, queries);
      select_items(selecting);
      attend_items<T, D>(attending);
    }
  });
}

}  // namespace questbench
