// What every kernel is told of a cache, and how it finds its way in it. Framework-free; lengths stay on the device.
#pragma once

#include <cstdint>

#include "questbench/algorithms.h"
#include "questbench/device.h"

namespace qb {

constexpr int kLanePages = 64;   // pages of one block of bounds by channel
constexpr int kMaxGroup = 16;    // query heads per KV head
constexpr int kMaxSplits = 256;  // blocks that share a list
constexpr float kLog2e = 1.4426950408889634f;

// Keys, values and bounds in physical pages, and the logical pages of each row.
template <class T>
struct Paged {
  T* k;                  // [N, kv_heads, page_size, head_dim]
  T* v;                  // same
  T* bounds;             // [N, kv_heads, 2, head_dim], or by channel; may be null
  int by_channel;        // [ceil(N / 64), kv_heads, head_dim, 2, 64]
  const int32_t* table;  // [rows, pages], rows strided
  int64_t table_stride;
  int32_t* lengths;  // [rows]
  int rows, kv_heads, page_size, page_shift, head_dim, pages;

  QB_DEVICE int pages_of(int row) const { return (lengths[row] + page_size - 1) >> page_shift; }
  QB_DEVICE int64_t physical(int row, int page) const { return table[row * table_stride + page]; }
  QB_DEVICE int64_t tile(int64_t physical_page, int head) const {
    return first_entry(physical_page, kv_heads, head, page_shift);
  }
};

// First in every kernel, before it touches memory: its blocks may have been started while the kernel ahead in the stream
// still ran. That one has then ended, and so, since it began like this, has every kernel before it. The next kernel's
// blocks may come as soon as all of this one have started: they take no place that these still need.
QB_DEVICE void begin_kernel() {
  wait_for_previous_kernel();
  let_next_kernel_start();
}

// The last block to arrive of `blocks` that share a counter, which is then zero again. All threads call it, after
// their block has written what the last one is to read.
QB_DEVICE bool last_to_arrive(unsigned* counter, unsigned blocks, int* shared_flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(counter, 1u) + 1 == blocks;
    if (last) *counter = 0;
    *shared_flag = last;
  }
  __syncthreads();
  const bool last = *shared_flag != 0;
  if (last) __threadfence();
  return last;
}

}  // namespace qb
