// Small correct kernels: what the emulator must carry out as CUDA does. Written against device.h like the real ones, and
// bound in basics_bind.cu.
#include "questbench/device.h"

// ---- Indices: every thread of every block exactly once --------------------------------------------------------------

QB_KERNEL index_kernel(int* __restrict__ visits) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  atomicAdd(&visits[block * (blockDim.x * blockDim.y * blockDim.z) + thread], 1);
}

void indices(int* visits, dim3 grid, dim3 block) { qb::launch(index_kernel, grid, block, 0, qb::Stream{}, visits); }

// ---- Sum: shuffles, a barrier, and the last block to arrive adds up ------------------------------------------------

struct SumShared {
  float partial[32];
  unsigned last;
};

QB_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(qb::kAllLanes, value, lanes);
  return value;
}

QB_KERNEL __launch_bounds__(1024) sum_kernel(const float* __restrict__ x, int n, float* partials, unsigned* counter,
                                            float* __restrict__ out) {
  SumShared& shared = qb::shared<SumShared>();
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) shared.partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (unsigned i = 0; i < blockDim.x / 32; ++i) total += shared.partial[i];
    partials[blockIdx.x] = total;
    __threadfence();
    shared.last = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  if (threadIdx.x >= 32) return;
  float total = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += 32) total += partials[i];
  total = warp_sum(total);
  if (threadIdx.x == 0) {
    *out = total;
    *counter = 0;
  }
}

void sum(const float* x, int n, float* partials, int blocks, unsigned* counter, float* out, int threads) {
  qb::launch(sum_kernel, dim3(blocks), dim3(threads), sizeof(SumShared), qb::Stream{}, x, n, partials, counter, out);
}

// ---- Shuffles and votes of one warp ----------------------------------------------------------------------------------

QB_KERNEL shuffle_kernel(const int* __restrict__ in, const int* __restrict__ argument, int* __restrict__ out, int width) {
  const int lane = threadIdx.x;
  out[lane] = __shfl_sync(qb::kAllLanes, in[lane], argument[lane], width);
  out[32 + lane] = __shfl_xor_sync(qb::kAllLanes, in[lane], argument[lane] & 31, width);
  out[64 + lane] = __shfl_up_sync(qb::kAllLanes, in[lane], argument[lane] & 31, width);
  out[96 + lane] = __shfl_down_sync(qb::kAllLanes, in[lane], argument[lane] & 31, width);
}

void shuffles(const int* in, const int* argument, int* out, int width) {
  qb::launch(shuffle_kernel, dim3(1), dim3(32), 0, qb::Stream{}, in, argument, out, width);
}

// Two halves of a warp meet apart from each other; the lanes of `mask` vote.
QB_KERNEL vote_kernel(const int* __restrict__ in, unsigned mask, unsigned* __restrict__ out) {
  const int lane = threadIdx.x;
  if ((mask >> lane & 1u) != 0) {
    out[lane] = __ballot_sync(mask, in[lane]);
    out[32 + lane] = __any_sync(mask, in[lane]);
    out[64 + lane] = __all_sync(mask, in[lane]);
    out[96 + lane] = __reduce_add_sync(mask, static_cast<unsigned>(in[lane]));
    out[128 + lane] = __reduce_max_sync(mask, static_cast<unsigned>(in[lane]));
  } else {
    out[lane] = __shfl_up_sync(~mask, static_cast<unsigned>(in[lane]), 1);
  }
  __syncwarp();
}

void votes(const int* in, unsigned mask, unsigned* out) {
  qb::launch(vote_kernel, dim3(1), dim3(32), 0, qb::Stream{}, in, mask, out);
}

// ---- Tensor cores: fragments straight from memory, and through load_matrix_4 ------------------------------------------

template <class T>
QB_KERNEL multiply_kernel(const T* __restrict__ a, const T* __restrict__ b, float* __restrict__ d) {
  const int lane = threadIdx.x, row = lane / 4, column = lane % 4 * 2;
  const auto pair = [](const T* at, int step) {
    return static_cast<unsigned>(at[0].bits) | static_cast<unsigned>(at[step].bits) << 16;
  };
  const unsigned fragment_a[4] = {pair(a + row * 16 + column, 1), pair(a + (row + 8) * 16 + column, 1),
                                  pair(a + row * 16 + column + 8, 1), pair(a + (row + 8) * 16 + column + 8, 1)};
  const unsigned fragment_b[2] = {pair(b + column * 8 + row, 8), pair(b + (column + 8) * 8 + row, 8)};
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(row + i / 2 * 8) * 8 + column + i % 2];
  qb::mma_16x8x16<T>(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + column + i % 2] = sums[i];
}

template <class T>
struct alignas(16) Tiles {
  T a[16][16];  // rows of 16
  T b[16][16];  // rows of 8, padded
};

// The same product through shared memory: a as it lies, b transposed.
template <class T>
QB_KERNEL multiply_shared_kernel(const T* __restrict__ a, const T* __restrict__ b, float* __restrict__ d) {
  Tiles<T>& tiles = qb::shared<Tiles<T>>();
  const int lane = threadIdx.x;
  qb::copy_async16(&tiles.a[lane / 2][lane % 2 * 8], a + lane * 8, true);
  qb::copy_async16(&tiles.b[lane / 2][lane % 2 * 8], b + lane / 2 * 8, lane % 2 == 0);
  qb::copy_commit();
  qb::copy_wait<0>();
  __syncwarp();
  unsigned fragment_a[4], both_b[4];
  qb::load_matrix_4(fragment_a, &tiles.a[lane % 8 + lane / 8 % 2 * 8][lane / 16 * 8]);
  qb::load_matrix_4_transposed(both_b, &tiles.b[lane % 16][lane / 16 * 8]);
  float sums[4] = {0, 0, 0, 0}, zeros[4] = {0, 0, 0, 0};
  qb::mma_16x8x16<T>(sums, fragment_a, {both_b[0], both_b[1]});
  qb::mma_16x8x16<T>(zeros, fragment_a, {both_b[2], both_b[3]});
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i] + zeros[i];
}

template <class T>
void multiply(const T* a, const T* b, float* d, bool through_shared) {
  const auto kernel = through_shared ? multiply_shared_kernel<T> : multiply_kernel<T>;
  qb::launch(kernel, dim3(1), dim3(32), through_shared ? sizeof(Tiles<T>) : 0, qb::Stream{}, a, b, d);
}
template void multiply(const qb::half_t*, const qb::half_t*, float*, bool);
template void multiply(const qb::bfloat16_t*, const qb::bfloat16_t*, float*, bool);

// ---- Asynchronous copies: a ring of three stages ---------------------------------------------------------------------

struct alignas(16) Ring {
  float stage[3][32 * 4];
};

QB_KERNEL ring_kernel(const float* __restrict__ x, int tiles, int valid, float* __restrict__ out) {
  Ring& ring = qb::shared<Ring>();
  const int lane = threadIdx.x;
  const auto fetch = [&](int tile) {
    const int at = tile * 128 + lane * 4;
    if (tile < tiles) qb::copy_async16(&ring.stage[tile % 3][lane * 4], x + at, at < valid);
    qb::copy_commit();
  };
  fetch(0);
  fetch(1);
  for (int tile = 0; tile < tiles; ++tile) {
    fetch(tile + 2);
    qb::copy_wait<2>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) out[tile * 128 + 32 * i + lane] = ring.stage[tile % 3][32 * i + lane];
    __syncthreads();
  }
}

void ring(const float* x, int tiles, int valid, float* out) {
  qb::launch(ring_kernel, dim3(1), dim3(32), sizeof(Ring), qb::Stream{}, x, tiles, valid, out);
}
