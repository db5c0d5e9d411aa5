// quantize: codes of the newest entries of every row, from the keys in their pages.
//
// Reads D elements per entry and KV head, writes D / 2 + 8 bytes. Any storage type.
#include <omp.h>

#include "questbench/ops.h"

namespace questbench {

template <typename T>
void quantize(const Quantize<T>& job) {
  const Paged<T>& paged = job.paged;
  const int64_t bytes = code_bytes(paged.head_dim);
#pragma omp parallel num_threads(threads_for(job.threads, paged.rows * paged.kv_heads * job.incoming * 2 * bytes))
  {
    std::vector<float> wide(2 * bytes + kLanes);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < paged.rows * paged.kv_heads; ++item) {
      const int64_t row = item / paged.kv_heads, head = item % paged.kv_heads, length = paged.lengths[row];
      const int64_t count = std::min<int64_t>(job.fresh ? job.fresh[row] : job.incoming, length);
      for (int64_t slot = length - count; slot < length; ++slot) {
        const T* key = paged.k + paged.tile(row, slot / paged.page_size, head) + slot % paged.page_size * paged.head_dim;
        const int64_t entry = item * job.slots + slot;
        quantize_entry(key, paged.head_dim, wide.data(), job.codes + entry * bytes, job.ranges + entry * 2);
      }
    }
  }
}

template void quantize(const Quantize<float>&);
template void quantize(const Quantize<fp16>&);
template void quantize(const Quantize<bf16>&);

}  // namespace questbench
