// device.h under nvcc: thin names for CUDA and PTX. The contracts stand in kernels/emulator/emulator.h too, where they
// are checked at run time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the kernels need compute capability 8.0 (asynchronous copies, bf16 tensor cores)"
#endif

#define QB_KERNEL __global__ void
#define QB_DEVICE __device__ __forceinline__

namespace qb {

using Stream = cudaStream_t;

// ---- Shared memory -------------------------------------------------------------------------------------------------

QB_DEVICE unsigned char* shared_bytes() {
  extern __shared__ __align__(16) unsigned char qb_shared_memory[];
  return qb_shared_memory;
}
template <class T>
QB_DEVICE T& shared() {
  static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes");
  return *reinterpret_cast<T*>(shared_bytes());
}
QB_DEVICE unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// ---- 16-bit storage ------------------------------------------------------------------------------------------------

QB_HOST_DEVICE float to_float(float value) { return value; }
QB_HOST_DEVICE float to_float(half_t value) { return __half2float(__ushort_as_half(value.bits)); }
QB_HOST_DEVICE float to_float(bfloat16_t value) { return __bfloat162float(__ushort_as_bfloat16(value.bits)); }

template <class T>
QB_HOST_DEVICE T from_float(float value) {
  if constexpr (std::is_same<T, half_t>::value) return half_t{__half_as_ushort(__float2half_rn(value))};
  if constexpr (std::is_same<T, bfloat16_t>::value) return bfloat16_t{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
  if constexpr (std::is_same<T, float>::value) return value;
}

// Two neighbours in one register; x is the one at the lower address.
template <class T>
QB_HOST_DEVICE Float2 unpack2(unsigned both) {
  return {to_float(T{static_cast<unsigned short>(both)}), to_float(T{static_cast<unsigned short>(both >> 16)})};
}
template <class T>
QB_HOST_DEVICE unsigned pack2(float x, float y) {
  return from_float<T>(x).bits | static_cast<unsigned>(from_float<T>(y).bits) << 16;
}

// ---- Loads and copies ----------------------------------------------------------------------------------------------

QB_DEVICE Vec16 load_global(const void* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  return {{raw.x, raw.y, raw.z, raw.w}};
}
// For data that nothing writes while the kernel runs and that is read once: past L1, through the read-only path.
QB_DEVICE Vec16 load_global_streaming(const void* from) {
  Vec16 out;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x[0]), "=r"(out.x[1]), "=r"(out.x[2]), "=r"(out.x[3])
               : "l"(__cvta_generic_to_global(from)));
  return out;
}
QB_DEVICE void store_global(void* to, Vec16 value) {
  *reinterpret_cast<uint4*>(to) = make_uint4(value.x[0], value.x[1], value.x[2], value.x[3]);
}

// 16 bytes from global to shared memory. An invalid copy reads nothing and fills zeros. The data is there for this
// thread after the copy_wait that covers it, and for others after a barrier that follows.
QB_DEVICE void copy_async16(void* to_shared, const void* from_global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to_shared)), "l"(__cvta_generic_to_global(from_global)), "r"(bytes)
               : "memory");
}
// Closes a group of copies.
QB_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the N newest groups of this thread are under way.
template <int N>
QB_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- Tensor cores --------------------------------------------------------------------------------------------------

// d += a . b over a warp: mma.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}, fragments as PTX lays them out:
// a 16 x 16, b 16 x 8, d 16 x 8.
template <class T>
QB_DEVICE void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  if constexpr (std::is_same<T, half_t>::value) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same<T, bfloat16_t>::value, "tensor cores multiply half_t or bfloat16_t");
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane 8 i + r gives the address of row r of matrix i
// (16 bytes, aligned); out[i] of lane l gets row l / 4, columns 2 (l % 4) and the next, of matrix i (transposed: of
// its transpose).
QB_DEVICE void load_matrix_4(unsigned (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
QB_DEVICE void load_matrix_4_transposed(unsigned (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- Launches ------------------------------------------------------------------------------------------------------

// With launch_dependent: blocks until the memory of the kernel before this one in the stream can be read.
QB_DEVICE void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets a kernel launched with launch_dependent after this one start its blocks once every block here has come so far.
QB_DEVICE void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

namespace detail {

inline std::string text(dim3 size) {
  return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
}

inline void check(cudaError_t status, const char* what, dim3 grid, dim3 block, size_t shared_bytes) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a failed launch must not be reported again by whoever launches next
  throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(status) + "; grid " + text(grid) +
                           ", block " + text(block) + ", " + std::to_string(shared_bytes) +
                           " bytes of shared memory");
}

inline int device() {
  int current = 0;
  cudaGetDevice(&current);
  return current;
}

// More than 48 KiB must be asked for, once per kernel and device.
inline void allow_shared(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  if (shared_bytes <= 48 * 1024) return;
  thread_local std::map<std::pair<const void*, int>, size_t> allowed;
  size_t& bytes = allowed[{kernel, device()}];
  if (bytes >= shared_bytes) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "asking for shared memory", grid, block, shared_bytes);
  bytes = shared_bytes;
}

// Devices of compute capability 9 and later have it; QUESTBENCH_DEPENDENT_LAUNCH=0 does without, to compare.
inline bool has_dependent_launch() {
  static const bool wanted = [] {
    const char* const set = std::getenv("QUESTBENCH_DEPENDENT_LAUNCH");
    return set == nullptr || std::strcmp(set, "0") != 0;
  }();
  if (!wanted) return false;
  thread_local std::map<int, bool> known;
  const int current = device();
  const auto found = known.find(current);
  if (found != known.end()) return found->second;
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, current);
  return known[current] = major >= 9;
}

template <class... P, class... A>
void launch(bool dependent, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            A&&... args) {
  allow_shared(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent && has_dependent_launch() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(args))...), "the launch of a kernel", grid,
        block, shared_bytes);
}

}  // namespace detail

// Throws std::runtime_error if CUDA refuses the launch.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, A&&... args) {
  detail::launch(false, kernel, grid, block, shared_bytes, stream, std::forward<A>(args)...);
}
// The same, but blocks may start before the kernel ahead in the stream has ended: such a kernel calls
// wait_for_previous_kernel() before it reads what that one wrote (and before it writes what that one reads).
template <class... P, class... A>
void launch_dependent(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, A&&... args) {
  detail::launch(true, kernel, grid, block, shared_bytes, stream, std::forward<A>(args)...);
}

}  // namespace qb
