// device.h on the CPU: the same names as under nvcc, carried out by fibers and checked while they run.
//
// Every thread of a block is a fiber; up to four blocks are resident at a time, and they start in random order. A fiber
// runs until it waits (for a barrier, for lanes of its warp) or reaches a point where the schedule, drawn from a seed,
// may switch; so two accesses without a barrier between them come in either order, depending on the seed. What is checked: barriers that threads
// reach at different places, deadlocks, masks, alignment, bytes written outside of shared memory. Shared memory starts
// as NaN patterns. An asynchronous copy poisons its destination and lands at its wait, or at any switch before.
// What is not: memory ordering (fences do nothing), bank conflicts, occupancy, speed, blocks that wait for each other.
#pragma once

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "questbench/device.h"
#include "runtime.h"

#define QB_KERNEL inline void
#define QB_DEVICE inline
#define __launch_bounds__(...)
// The place of the call in the kernel's source.
#define QB_EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

using qb::emulator::blockDim;
using qb::emulator::blockIdx;
using qb::emulator::dim3;
using qb::emulator::gridDim;
using qb::emulator::threadIdx;
using qb::emulator::uint3;

// ---- Barriers and warps --------------------------------------------------------------------------------------------

inline void __syncthreads(QB_EMULATOR_PLACE) { qb::emulator::block_barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, QB_EMULATOR_PLACE) {
  qb::emulator::warp_barrier(mask, {file, line});
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, QB_EMULATOR_PLACE) {
  return qb::emulator::shuffle(qb::emulator::Meeting::kShuffle, mask, value, lane, width, {file, line});
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, QB_EMULATOR_PLACE) {
  return qb::emulator::shuffle(qb::emulator::Meeting::kShuffleXor, mask, value, lanes, width, {file, line});
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, QB_EMULATOR_PLACE) {
  return qb::emulator::shuffle(qb::emulator::Meeting::kShuffleUp, mask, value, static_cast<int>(lanes), width,
                               {file, line});
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, QB_EMULATOR_PLACE) {
  return qb::emulator::shuffle(qb::emulator::Meeting::kShuffleDown, mask, value, static_cast<int>(lanes), width,
                               {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, QB_EMULATOR_PLACE) {
  return qb::emulator::ballot(mask, predicate != 0, {file, line}).set;
}
inline int __any_sync(unsigned mask, int predicate, QB_EMULATOR_PLACE) {
  return qb::emulator::ballot(mask, predicate != 0, {file, line}).set != 0;
}
inline int __all_sync(unsigned mask, int predicate, QB_EMULATOR_PLACE) {
  const qb::emulator::Votes votes = qb::emulator::ballot(mask, predicate != 0, {file, line});
  return votes.set == votes.voters;
}

#define QB_EMULATOR_REDUCE(name, type, expression)                                             \
  inline type name(unsigned mask, type value, QB_EMULATOR_PLACE) {                             \
    return qb::emulator::reduce(                                                               \
        mask, value, [](type a, type b) -> type { return expression; }, #name, {file, line});  \
  }
QB_EMULATOR_REDUCE(__reduce_add_sync, unsigned, a + b)
QB_EMULATOR_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
QB_EMULATOR_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
QB_EMULATOR_REDUCE(__reduce_min_sync, int, a < b ? a : b)
QB_EMULATOR_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
QB_EMULATOR_REDUCE(__reduce_max_sync, int, a > b ? a : b)
QB_EMULATOR_REDUCE(__reduce_and_sync, unsigned, a & b)
QB_EMULATOR_REDUCE(__reduce_or_sync, unsigned, a | b)
#undef QB_EMULATOR_REDUCE

// ---- Atomics: one thread of the machine runs all fibers, so plain operations are atomic ------------------------------

inline void __threadfence() { qb::emulator::may_switch(); }
inline void __threadfence_block() { qb::emulator::may_switch(); }

namespace qb::emulator {
template <class T, class F>
inline T atomic(T* where, F&& change) {
  may_switch();
  const T before = *where;
  *where = change(before);
  return before;
}
}  // namespace qb::emulator

template <class T>
inline T atomicAdd(T* where, std::common_type_t<T> value) {
  using Wide = typename std::conditional_t<std::is_integral_v<T>, std::make_unsigned<T>, std::common_type<T>>::type;
  return qb::emulator::atomic(
      where, [&](T old) { return static_cast<T>(static_cast<Wide>(old) + static_cast<Wide>(value)); });
}
template <class T>
inline T atomicMax(T* where, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>, "CUDA has atomicMax for integers only");
  return qb::emulator::atomic(where, [&](T old) { return old < value ? value : old; });
}
template <class T>
inline T atomicMin(T* where, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>, "CUDA has atomicMin for integers only");
  return qb::emulator::atomic(where, [&](T old) { return value < old ? value : old; });
}
template <class T>
inline T atomicExch(T* where, std::common_type_t<T> value) {
  return qb::emulator::atomic(where, [&](T) { return value; });
}
template <class T>
inline T atomicOr(T* where, std::common_type_t<T> value) {
  return qb::emulator::atomic(where, [&](T old) { return static_cast<T>(old | value); });
}
template <class T>
inline T atomicCAS(T* where, std::common_type_t<T> expected, std::common_type_t<T> value) {
  return qb::emulator::atomic(where, [&](T old) { return old == expected ? value : old; });
}

// ---- Arithmetic ----------------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned out = 0;
  for (int bit = 0; bit < 32; ++bit) out |= (x >> bit & 1u) << (31 - bit);
  return out;
}
inline unsigned __float_as_uint(float x) { return qb::emulator::bits_of<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return qb::emulator::bits_of<float>(x); }
inline int __float_as_int(float x) { return qb::emulator::bits_of<int>(x); }
inline float __int_as_float(int x) { return qb::emulator::bits_of<float>(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
template <class T>
inline T __ldg(const T* from) {
  return *from;
}
// CUDA's min and max take two values of one type, and are fminf and fmaxf for floats.
template <class T>
inline T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
  return a < b ? b : a;
}

namespace qb {

// ---- Shared memory and 16-bit storage --------------------------------------------------------------------------------

inline unsigned char* shared_bytes() { return emulator::shared_memory(); }
template <class T>
inline T& shared() {
  static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes");
  emulator::check_shared_size(sizeof(T));
  return *reinterpret_cast<T*>(shared_bytes());
}

inline float to_float(float value) { return value; }
inline float to_float(half_t value) { return emulator::half_to_float(value.bits); }
inline float to_float(bfloat16_t value) { return emulator::bits_of<float>(static_cast<unsigned>(value.bits) << 16); }

template <class T>
inline T from_float(float value) {
  if constexpr (std::is_same_v<T, half_t>) return half_t{emulator::float_to_half(value)};
  if constexpr (std::is_same_v<T, bfloat16_t>) return bfloat16_t{emulator::float_to_bfloat16(value)};
  if constexpr (std::is_same_v<T, float>) return value;
}
template <class T>
inline Float2 unpack2(unsigned both) {
  return {to_float(T{static_cast<unsigned short>(both)}), to_float(T{static_cast<unsigned short>(both >> 16)})};
}
template <class T>
inline unsigned pack2(float x, float y) {
  return from_float<T>(x).bits | static_cast<unsigned>(from_float<T>(y).bits) << 16;
}

// ---- Loads and copies ------------------------------------------------------------------------------------------------

inline Vec16 load_global(const void* from) {
  emulator::check_aligned(from, "load_global");
  Vec16 out;
  std::memcpy(&out, from, 16);
  return out;
}
inline Vec16 load_global_streaming(const void* from) {
  emulator::check_aligned(from, "load_global_streaming");
  Vec16 out;
  std::memcpy(&out, from, 16);
  return out;
}
inline void store_global(void* to, Vec16 value) {
  emulator::check_aligned(to, "store_global");
  std::memcpy(to, &value, 16);
}
inline void copy_async16(void* to_shared, const void* from_global, bool valid) {
  emulator::copy_issue(to_shared, from_global, valid);
}
inline void copy_commit() { emulator::copy_commit(); }
template <int N>
inline void copy_wait() {
  static_assert(N >= 0, "groups under way");
  emulator::copy_wait(N);
}

// ---- Tensor cores ----------------------------------------------------------------------------------------------------

template <class T>
inline void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], QB_EMULATOR_PLACE) {
  static_assert(std::is_same_v<T, half_t> || std::is_same_v<T, bfloat16_t>,
                "tensor cores multiply half_t or bfloat16_t");
  emulator::multiply(d, a, b, std::is_same_v<T, half_t>, {file, line});
}
inline void load_matrix_4(unsigned (&out)[4], const void* row, QB_EMULATOR_PLACE) {
  emulator::load_matrices(out, row, false, {file, line});
}
inline void load_matrix_4_transposed(unsigned (&out)[4], const void* row, QB_EMULATOR_PLACE) {
  emulator::load_matrices(out, row, true, {file, line});
}

// ---- Launches --------------------------------------------------------------------------------------------------------

inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}

using Stream = void*;

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream, A&&... args) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
  } call{kernel, std::tuple<P...>(static_cast<P>(std::forward<A>(args))...)};
  const auto enter = [](void* opaque) {
    Call& made = *static_cast<Call*>(opaque);
    std::apply(made.kernel, made.arguments);
  };
  emulator::run({grid, block, shared_bytes, reinterpret_cast<const void*>(kernel)}, enter, &call);
}
template <class... P, class... A>
void launch_dependent(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, A&&... args) {
  launch(kernel, grid, block, shared_bytes, stream, std::forward<A>(args)...);
}

}  // namespace qb
