// The layer that CUDA kernels are written against: the only header, besides plain algorithms, that kernels/cuda/*.cu
// include. Under nvcc it is CUDA; with -DQUESTBENCH_EMULATOR the same source compiles with g++ and runs on the CPU,
// one fiber per thread (kernels/emulator).
//
// Rules for kernels
//   QB_KERNEL name(...)            a kernel; QB_DEVICE a function of the device, QB_HOST_DEVICE one of both
//   qb::shared<T>()                the block's dynamic shared memory as a T; static __shared__ does not exist here
//   qb::launch(kernel, grid, block, shared_bytes, stream, args...)   instead of <<<>>>; never synchronises
//   threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, __shfl_*_sync, __ballot_sync, __any_sync,
//   __all_sync, __reduce_{add,min,max,and,or}_sync, __popc, __clz, __ffs, __brev, __float_as_uint, __uint_as_float,
//   __threadfence, atomicAdd/Max/Min/Exch/CAS/Or, __ldg, min, max, exp2f, log2f, tanhf, fmaxf, fminf   as in CUDA
//   qb::half_t, qb::bfloat16_t, to_float, from_float<T>, unpack2<T>, pack2<T>      16-bit storage, framework-free
//   qb::Vec16, load_global, load_global_streaming, store_global                     16 bytes, aligned to 16
//   qb::copy_async16, copy_commit, copy_wait<N>                                     global to shared, asynchronous
//   qb::mma_16x8x16<T>, load_matrix_4, load_matrix_4_transposed                     tensor cores, whole warps
//   qb::wait_for_previous_kernel, let_next_kernel_start, launch_dependent           programmatic dependent launch
#pragma once

#include "questbench/host_device.h"

namespace qb {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Float2 {
  float x, y;
};

// 16 bytes in registers: what one load instruction moves.
struct alignas(16) Vec16 {
  unsigned x[4];
};

// Storage types: bits only. Arithmetic happens in float.
struct half_t {
  unsigned short bits;
};
struct bfloat16_t {
  unsigned short bits;
};

}  // namespace qb

#if defined(QUESTBENCH_EMULATOR)
#include "../../emulator/emulator.h"  // IWYU pragma: export
#elif defined(__CUDACC__)
#include "questbench/device_cuda.h"  // IWYU pragma: export
#else
#error "kernels are compiled by nvcc, or by a C++ compiler with -DQUESTBENCH_EMULATOR"
#endif
