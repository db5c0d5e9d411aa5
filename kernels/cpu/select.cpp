// select: the pages of every list, one list per work item.
#include <omp.h>

#include <vector>

#include "questbench/ops.h"

namespace questbench {

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

void select(const Select& job) {
#pragma omp parallel num_threads(threads_for(job.threads, job.rows * job.query_heads * job.pages * 4))
  select_items(job);
}

}  // namespace questbench
