// The kernels' plain algorithms as functions of tensors, run on the host.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

#include "questbench/algorithms.h"
#include "questbench/device.h"

namespace {

using tvm::ffi::TensorView;

void keys(TensorView scores, TensorView out) {
  const float* from = static_cast<const float*>(scores.data_ptr());
  int64_t* to = static_cast<int64_t*>(out.data_ptr());
  for (int64_t i = 0; i < scores.size(0); ++i) to[i] = qb::order_key(from[i]);
}

int64_t entry(int64_t page, int64_t kv_heads, int64_t head, int64_t shift) {
  return qb::first_entry(page, int(kv_heads), int(head), int(shift));
}

int64_t begin(int64_t tiles, int64_t split, int64_t splits) { return qb::share_begin(tiles, int(split), int(splits)); }

// parts [n, 3] -> out [3]
void merge(TensorView parts, double sink, TensorView out) {
  const float* from = static_cast<const float*>(parts.data_ptr());
  const qb::Part made = qb::merge(int(parts.size(0)), float(sink), [&](int i) {
    return qb::Part{from[3 * i], from[3 * i + 1], from[3 * i + 2]};
  });
  float* to = static_cast<float*>(out.data_ptr());
  to[0] = made.top, to[1] = made.total, to[2] = made.value;
}

double weight(double top, double total, double base) { return qb::part_weight(float(top), float(total), float(base)); }

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(keys, keys);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(entry, entry);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(begin, begin);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(merge, merge);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(weight, weight);
