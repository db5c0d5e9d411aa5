// Linear layers of a decode step: blocks of outputs in one parallel region.
#include "questbench/linear.h"

#include "shares.h"

namespace questbench {

template <typename T>
void linear(const Linear<T>& job) {
  const int64_t items = linear_items(job);
  const int threads = weight_bytes(job) < kAlone ? 1 : job.threads;
  std::vector<float> arranged(arranged_size(job));
  arrange_rows(job, arranged.data());
  Shares shares(items, threads);
#pragma omp parallel num_threads(threads)
  shares.each([&](int64_t item) { linear_item(job, arranged.data(), item); });
}

template void linear(const Linear<float>&);
template void linear(const Linear<fp16>&);
template void linear(const Linear<bf16>&);

}  // namespace questbench
