// Tensors for basics.cu. Apart, because the binding's headers take most of the compile time.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

#include "questbench/device.h"

void indices(int* visits, dim3 grid, dim3 block);
void sum(const float* x, int n, float* partials, int blocks, unsigned* counter, float* out, int threads);
void shuffles(const int* in, const int* argument, int* out, int width);
void votes(const int* in, unsigned mask, unsigned* out);
template <class T>
void multiply(const T* a, const T* b, float* d, bool through_shared);
void ring(const float* x, int tiles, int valid, float* out);

namespace {

using tvm::ffi::TensorView;

template <class T>
T* data(const TensorView& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

void bind_indices(TensorView visits, int64_t gx, int64_t gy, int64_t gz, int64_t x, int64_t y, int64_t z) {
  indices(data<int>(visits), dim3(gx, gy, gz), dim3(x, y, z));
}

void bind_sum(TensorView x, TensorView partials, TensorView counter, TensorView out, int64_t threads) {
  sum(data<float>(x), x.size(0), data<float>(partials), partials.size(0), data<unsigned>(counter), data<float>(out),
      threads);
}

void bind_shuffles(TensorView in, TensorView argument, TensorView out, int64_t width) {
  shuffles(data<int>(in), data<int>(argument), data<int>(out), width);
}

void bind_votes(TensorView in, int64_t mask, TensorView out) {
  votes(data<int>(in), static_cast<unsigned>(mask), data<unsigned>(out));
}

void bind_multiply(TensorView a, TensorView b, TensorView d, bool through_shared) {
  if (a.dtype().code == kDLBfloat) {
    multiply(data<qb::bfloat16_t>(a), data<qb::bfloat16_t>(b), data<float>(d), through_shared);
  } else {
    multiply(data<qb::half_t>(a), data<qb::half_t>(b), data<float>(d), through_shared);
  }
}

void bind_ring(TensorView x, int64_t tiles, int64_t valid, TensorView out) {
  ring(data<float>(x), tiles, valid, data<float>(out));
}

// The conversions on the host, over whole arrays.
template <class T>
void convert_as(TensorView from, TensorView to, bool narrow) {
  for (int64_t i = 0; i < from.size(0); ++i) {
    if (narrow) {
      data<T>(to)[i] = qb::from_float<T>(data<float>(from)[i]);
    } else {
      data<float>(to)[i] = qb::to_float(data<T>(from)[i]);
    }
  }
}
void bind_convert(TensorView from, TensorView to) {
  const bool narrow = from.dtype().bits == 32;
  const DLDataType stored = narrow ? to.dtype() : from.dtype();
  if (stored.code == kDLBfloat) return convert_as<qb::bfloat16_t>(from, to, narrow);
  convert_as<qb::half_t>(from, to, narrow);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(indices, bind_indices);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(sum, bind_sum);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(shuffles, bind_shuffles);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(votes, bind_votes);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(multiply, bind_multiply);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(ring, bind_ring);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(convert, bind_convert);
