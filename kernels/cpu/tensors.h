// What the files that bind kernels share: pointers of tensors, and the storage type as a template argument.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/optional.h>

#include "questbench/contract.h"
#include "questbench/vector.h"

namespace questbench {

using tvm::ffi::Optional;
using tvm::ffi::TensorView;

constexpr contract::Backend kBackend{"CPU", kDLCPU, kMaxGroup};

template <typename T>
T* data(const TensorView& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <typename T>
T* data(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? static_cast<T*>(tensor.value().data_ptr()) : nullptr;
}

template <typename F>
void with_type(const TensorView& tensor, F&& f) {
  const DLDataType type = tensor.dtype();
  if (type.code == kDLFloat && type.bits == 32) return f(float{});
  if (type.code == kDLFloat && type.bits == 16) return f(fp16{});
  if (type.code == kDLBfloat && type.bits == 16) return f(bf16{});
  TVM_FFI_THROW(TypeError) << "the CPU kernels store fp32, fp16 and bf16, not " << tvm::ffi::DLDataTypeToString(type);
}

}  // namespace questbench
