// Linear layers of a decode step: blocks of outputs in one parallel region.
#include "questbench/linear.h"

namespace questbench {

template <typename T>
void linear(const Linear<T>& job) {
  const int64_t items = linear_items(job);
  const int threads = weight_bytes(job) < kAlone ? 1 : job.threads;
  std::vector<float> arranged(arranged_size(job));
  arrange_rows(job, arranged.data());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t item = 0; item < items; ++item) linear_item(job, arranged.data(), item);
}

template void linear(const Linear<float>&);
template void linear(const Linear<fp16>&);
template void linear(const Linear<bf16>&);

}  // namespace questbench
