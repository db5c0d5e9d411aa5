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
  const bool blocks_fit = kBlocks && job.inputs >= kLanes;
  const int64_t width = query_width(job.inputs);
  std::vector<float> arranged(blocks_fit ? job.rows * width : 0);
  for (int64_t row = 0; row < job.rows && blocks_fit; ++row)
    arrange<T>(job.x + row * job.inputs, job.inputs, arranged.data() + row * width);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t item = 0; item < blocks; ++item) {
    const int64_t first = item * block, last = std::min(first + block, job.outputs);
    const auto part = [&]<int kBatch>(int64_t row) {
      if constexpr (kBlocks)
        if (blocks_fit) return linear_batch<T, kBatch>(job, arranged.data() + row * width, row, first, last);
      linear_block<T, kBatch>(job, row, first, last);
    };
    int64_t row = 0;
    for (; row + 4 <= job.rows; row += 4) part.template operator()<4>(row);
    if (job.rows - row >= 2) part.template operator()<2>(row), row += 2;
    if (job.rows - row == 1) part.template operator()<1>(row);
  }
}

template void linear(const Linear<float>&);
template void linear(const Linear<fp16>&);
template void linear(const Linear<bf16>&);

}  // namespace questbench
