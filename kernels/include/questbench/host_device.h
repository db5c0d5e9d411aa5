// For headers of plain algorithms that kernels, the CPU library and unit tests on the host share.
#pragma once

#if defined(__CUDACC__)
#define QB_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define QB_HOST_DEVICE inline
#endif
