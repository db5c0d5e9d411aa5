// score, select, attend and their fusion: the same work items in one parallel region each.
#include <omp.h>

#include "questbench/ops.h"
#include "questbench/score.h"

namespace questbench {
namespace {

constexpr int64_t kSmall = 1 << 16;  // bytes below which a second thread costs more than it brings

template <typename T, int D>
void score_items(const Score<T>& job, const Query<T>* signs) {
  const int64_t blocks = (job.pages + kScorePages - 1) / kScorePages, dim = job.paged.head_dim;
  const int group = static_cast<int>(job.query_heads / job.paged.kv_heads);
#pragma omp for schedule(dynamic, 1)
  for (int64_t item = 0; item < job.paged.rows * blocks; ++item) {
    const int64_t row = item / blocks, first = item % blocks * kScorePages;
    const int64_t scored = job.paged.pages_of(row) - (job.skip_newest ? 1 : 0);
    score_pages<T, D>(job.paged, row, first, std::min(first + kScorePages, job.pages), scored,
                      signs + row * job.query_heads * 2 * dim, group, job.scores + row * job.query_heads * job.pages,
                      job.pages);
  }
}

template <typename T>
Query<T>* signs_of(const Score<T>& job) {
  const int64_t dim = job.paged.head_dim;
  Query<T>* signs = scratch<Query<T>>(0, job.paged.rows * job.query_heads * 2 * dim);
  split_signs(job.q, job.paged.rows * job.query_heads, dim, signs);
  return signs;
}

void select_items(const Select& job) {
  const int64_t lists = job.lists(), heads = job.query_heads / lists;
  std::vector<float> merged(job.pages);
#pragma omp for schedule(dynamic, 1)
  for (int64_t item = 0; item < job.rows * lists; ++item) {
    const int64_t row = item / lists, list = item % lists;
    const int64_t total = (job.lengths[row] + job.page_size - 1) / job.page_size;
    const int64_t asked = job.row_counts ? job.row_counts[row] : job.count;
    const int64_t wanted = std::min(std::min(total, asked), job.width);
    const int64_t forced = job.force_newest ? 1 : 0;
    int32_t* out = job.out + item * job.width;
    int64_t taken = 0;
    if (wanted > 0) {
      const float* own = job.scores + (row * job.query_heads + list * heads) * job.pages;
      if (wanted < total && wanted > forced)
        merge_scores(own, job.pages, static_cast<int>(heads), total - forced, job.merge, job.scale, merged.data());
      taken = select_pages(merged.data(), total - forced, wanted - forced, out);
      if (forced) out[taken++] = static_cast<int32_t>(total - 1);
    }
    job.counts[item] = static_cast<int32_t>(taken);
    std::fill(out + taken, out + job.width, -1);
  }
}

template <typename T>
void prepare(Attend<T>& job) {
  const int64_t dim = job.paged.head_dim;
  int64_t longest = 0;
  for (int64_t row = 0; row < job.paged.rows; ++row) longest = std::max(longest, job.paged.pages_of(row));
  if (job.pages) longest = std::min(longest, job.width);
  job.chunks = std::max<int64_t>(1, (longest + job.chunk_pages() - 1) / job.chunk_pages());
  const int64_t parts = job.items() * job.heads();
  job.partial_out = scratch<float>(1, parts * dim);
  job.partial_max = scratch<float>(2, parts);
  job.partial_sum = scratch<float>(3, parts);
  job.weights = job.mass ? scratch<float>(4, parts * kChunk) : nullptr;
}

template <typename T, int D>
void attend_items(const Attend<T>& job) {
  std::vector<float> logits(job.heads() * (kChunk + kLanes));
  std::vector<Query<T>> query(job.heads() * job.paged.head_dim);
  std::vector<float> factors(job.chunks);
#pragma omp for schedule(dynamic, 1)
  for (int64_t item = 0; item < job.items(); ++item)
    attend_chunk<T, D>(job, item, omp_get_num_threads(), logits.data(), query.data());
#pragma omp for schedule(static)
  for (int64_t item = 0; item < job.paged.rows * job.query_heads; ++item)
    merge_chunks(job, item / job.query_heads, item % job.query_heads, factors.data());
  if (job.mass != nullptr) {
#pragma omp for schedule(static)
    for (int64_t item = 0; item < job.paged.rows * job.paged.kv_heads; ++item)
      write_mass(job, item / job.paged.kv_heads, item % job.paged.kv_heads, factors.data());
  }
}

int threads_for(int threads, int64_t bytes) { return bytes < kSmall ? 1 : threads; }

}  // namespace

template <typename T>
void score(const Score<T>& job) {
  const Query<T>* signs = signs_of(job);
  const int64_t bytes = job.paged.rows * job.pages * job.paged.kv_heads * 2 * job.paged.head_dim * sizeof(T);
  with_head_dim(job.paged.head_dim, [&]<int D>() {
#pragma omp parallel num_threads(threads_for(job.threads, bytes))
    score_items<T, D>(job, signs);
  });
}

void select(const Select& job) {
#pragma omp parallel num_threads(threads_for(job.threads, job.rows * job.query_heads * job.pages * 4))
  select_items(job);
}

template <typename T>
void attend(Attend<T>& job, int threads) {
  prepare(job);
  const int64_t bytes = job.items() * kChunk * 2 * job.paged.head_dim * sizeof(T);
  with_head_dim(job.paged.head_dim, [&]<int D>() {
#pragma omp parallel num_threads(threads_for(threads, bytes))
    attend_items<T, D>(job);
  });
}

template <typename T>
void attend_top(const Score<T>& scoring, const Select& selecting, Attend<T>& attending) {
  const Query<T>* signs = signs_of(scoring);
  prepare(attending);
  const int64_t bytes = attending.items() * kChunk * 2 * attending.paged.head_dim * sizeof(T);
  with_head_dim(attending.paged.head_dim, [&]<int D>() {
#pragma omp parallel num_threads(threads_for(scoring.threads, bytes))
    {
      score_items<T, D>(scoring, signs);
      select_items(selecting);
      attend_items<T, D>(attending);
    }
  });
}

#define QUESTBENCH_FOR(T)                                    \
  template void score(const Score<T>&);                      \
  template void attend(Attend<T>&, int);                     \
  template void attend_top(const Score<T>&, const Select&, Attend<T>&);
#ifdef QUESTBENCH_TYPE
QUESTBENCH_FOR(QUESTBENCH_TYPE)
#else
QUESTBENCH_FOR(float)
QUESTBENCH_FOR(fp16)
QUESTBENCH_FOR(bf16)
#endif

}  // namespace questbench
