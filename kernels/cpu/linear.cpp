// Linear layers of a decode step: blocks of outputs in one parallel region.
#include <algorithm>

#include "questbench/linear.h"

namespace questbench {
namespace {

constexpr int64_t kBlockBytes = 1 << 16;  // of weights per work item: long enough to stream, short enough to share out
constexpr int64_t kSmall = 1 << 16;       // bytes below which a second thread costs more than it brings

}  // namespace

template <typename T>
void linear(const Linear<T>& job) {
  const int64_t row_bytes = std::max<int64_t>(job.inputs * static_cast<int64_t>(sizeof(T)), 1);
  const int64_t block = std::max<int64_t>(kBlockBytes / row_bytes, 1);
  const int64_t blocks = (job.outputs + block - 1) / block;
  const int threads = job.outputs * row_bytes < kSmall ? 1 : job.threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t item = 0; item < blocks; ++item) {
    const int64_t first = item * block, last = std::min(first + block, job.outputs);
    int64_t row = 0;
    for (; row + 4 <= job.rows; row += 4) linear_block<T, 4>(job, row, first, last);
    if (job.rows - row >= 2) linear_block<T, 2>(job, row, first, last), row += 2;
    if (job.rows - row == 1) linear_block<T, 1>(job, row, first, last);
  }
}

template void linear(const Linear<float>&);
template void linear(const Linear<fp16>&);
template void linear(const Linear<bf16>&);

}  // namespace questbench
