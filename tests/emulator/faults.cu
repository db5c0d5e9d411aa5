// Small wrong kernels, one mistake each: what the emulator must show or refuse.
#include "questbench/device.h"

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

namespace {

using tvm::ffi::TensorView;

template <class T>
T* data(const TensorView& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

}  // namespace

struct alignas(16) Shared {
  float values[256];
};

// Mirrors 64 values through shared memory.
QB_KERNEL mirror_kernel(const float* x, float* out, bool barrier) {
  Shared& shared = qb::shared<Shared>();
  shared.values[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncthreads();
  out[threadIdx.x] = shared.values[63 - threadIdx.x];
}

// Turns values by one in every round; without the second barrier a fast thread overwrites what a slow one still reads.
QB_KERNEL turn_kernel(const float* x, float* out, int rounds, bool barrier) {
  Shared& shared = qb::shared<Shared>();
  float mine = x[threadIdx.x];
  for (int round = 0; round < rounds; ++round) {
    shared.values[threadIdx.x] = mine;
    __syncthreads();
    mine = shared.values[(threadIdx.x + 1) % 64];
    if (barrier) __syncthreads();
  }
  out[threadIdx.x] = mine;
}

enum Copying { kRight, kNoWait, kNoCommit, kWaitForOlder, kNoBarrier };

QB_KERNEL copy_kernel(const float* x, float* out, int copying) {
  Shared& shared = qb::shared<Shared>();
  const int at = threadIdx.x * 4;
  qb::copy_async16(&shared.values[at], x + at, true);
  if (copying != kNoCommit) qb::copy_commit();
  if (copying == kWaitForOlder) qb::copy_wait<1>();
  if (copying != kNoWait && copying != kWaitForOlder) qb::copy_wait<0>();
  if (copying != kNoBarrier) __syncthreads();
  for (int i = 0; i < 4; ++i) out[64 * i + threadIdx.x] = shared.values[64 * i + threadIdx.x];
}

// Which block is the last one must come from a counter, not from its number.
QB_KERNEL last_block_kernel(const float* x, float* partial, float* out) {
  partial[blockIdx.x] = x[blockIdx.x];
  __threadfence();
  if (blockIdx.x != gridDim.x - 1) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
  *out = sum;
}

// A read-modify-write that is not atomic.
QB_KERNEL count_kernel(int* out, bool atomically) {
  if (atomically) {
    atomicAdd(out, 1);
  } else {
    const int before = *out;
    __threadfence();
    *out = before + 1;
  }
}

enum Mistake {
  kDivergentBarrier,
  kBarrierInOneWarp,
  kLaneOutsideOfMask,
  kLanesInDifferentVotes,
  kLaneNeverComes,
  kEndsBeforeOthers,  // no mistake
  kWritesAboveShared,
  kWritesBelowShared,
  kStructTooLarge,
  kMisalignedLoad,
  kCopyOutsideOfShared,
  kNullPointer,
  kPartialMultiply,
  kEndlessStack,
};

int endless(int depth, volatile int* trail) {
  volatile int here[1024];
  here[depth % 1024] = depth + (trail == nullptr ? 0 : *trail);
  return endless(depth + 1, here) + here[0];
}

QB_KERNEL mistake_kernel(int mistake, float* out) {
  const int thread = threadIdx.x, lane = thread % 32;
  switch (mistake) {
    case kDivergentBarrier:
      if (thread < 7) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case kBarrierInOneWarp:
      if (thread == 40) {
        __syncthreads();
      } else {
        __shfl_sync(qb::kAllLanes, thread, 0);
      }
      break;
    case kLaneOutsideOfMask: __ballot_sync(0x0000ffffu, 1); break;
    case kLanesInDifferentVotes:
      if (lane % 2 == 0) {
        __ballot_sync(qb::kAllLanes, 1);
      } else {
        __shfl_sync(qb::kAllLanes, 1.0f, 0);
      }
      break;
    case kLaneNeverComes:
      if (lane != 3) __syncwarp();
      if (lane == 3) __syncwarp(0x18u);
      break;
    case kEndsBeforeOthers:
      if (thread >= 40) return;
      __syncthreads();
      break;
    case kWritesAboveShared: qb::shared_bytes()[sizeof(Shared)] = 1; break;
    case kWritesBelowShared: qb::shared_bytes()[-1] = 1; break;
    case kStructTooLarge: qb::shared<Shared[2]>()[1].values[0] = 1; break;
    case kMisalignedLoad: out[0] = __uint_as_float(qb::load_global(out + 1).x[0]); break;
    case kCopyOutsideOfShared: qb::copy_async16(qb::shared_bytes() + sizeof(Shared), out, true); break;
    case kNullPointer:
      if (thread == 5) *static_cast<volatile float*>(nullptr) = 1;
      break;
    case kPartialMultiply:
      if (lane != 0) {
        float d[4] = {};
        qb::mma_16x8x16<qb::half_t>(d, {0, 0, 0, 0}, {0, 0});
      }
      break;
    case kEndlessStack: out[0] = static_cast<float>(endless(0, nullptr)); break;
    default: break;
  }
  if (thread == 0) out[0] = 1;
}

void mirror(TensorView x, TensorView out, bool barrier) {
  qb::launch(mirror_kernel, dim3(1), dim3(64), sizeof(Shared), qb::Stream{}, data<float>(x), data<float>(out), barrier);
}
void turn(TensorView x, TensorView out, int64_t rounds, bool barrier) {
  qb::launch(turn_kernel, dim3(1), dim3(64), sizeof(Shared), qb::Stream{}, data<float>(x), data<float>(out), rounds,
             barrier);
}
void copy(TensorView x, TensorView out, int64_t copying) {
  qb::launch(copy_kernel, dim3(1), dim3(64), sizeof(Shared), qb::Stream{}, data<float>(x), data<float>(out), copying);
}
void last_block(TensorView x, TensorView partial, TensorView out) {
  qb::launch(last_block_kernel, dim3(x.size(0)), dim3(1), 0, qb::Stream{}, data<float>(x), data<float>(partial),
             data<float>(out));
}
void count(TensorView out, int64_t blocks, bool atomically) {
  qb::launch(count_kernel, dim3(blocks), dim3(64 / blocks), 0, qb::Stream{}, data<int>(out), atomically);
}
void mistake(int64_t which, TensorView out) {
  qb::launch(mistake_kernel, dim3(1), dim3(64), sizeof(Shared), qb::Stream{}, which, data<float>(out));
}
void shape(int64_t grid, int64_t threads, int64_t shared_bytes, TensorView out) {
  qb::launch(count_kernel, dim3(grid), dim3(threads), shared_bytes, qb::Stream{}, data<int>(out), true);
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(mirror, mirror);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(turn, turn);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(copy, copy);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(last_block, last_block);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(count, count);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(mistake, mistake);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(shape, shape);
