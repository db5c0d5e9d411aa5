// Plain views of the tensors that every op works on: pointers and strides, no framework.
#pragma once

#include <cstdint>

namespace questbench {

constexpr int64_t kLanePages = 64;  // pages of one block of bounds by channel

// Keys, values and bounds in physical pages, and the logical pages of each row.
template <typename T>
struct Paged {
  T* k;       // [N, kv_heads, page_size, head_dim]
  T* v;       // same
  T* bounds;  // max, min of each page's keys, [N, kv_heads, 2, head_dim] or by channel; may be null
  bool by_channel;  // [ceil(N / kLanePages), kv_heads, head_dim, 2, kLanePages], full pages only
  const int32_t* table;
  int64_t table_stride;  // elements between rows of the page table
  int32_t* lengths;      // [rows]
  int64_t rows, kv_heads, page_size, head_dim;

  int64_t pages_of(int64_t row) const { return (lengths[row] + page_size - 1) / page_size; }
  int64_t physical(int64_t row, int64_t page) const { return table[row * table_stride + page]; }
  int64_t tile(int64_t row, int64_t page, int64_t head) const {
    return (physical(row, page) * kv_heads + head) * page_size * head_dim;
  }
  // One entry of a row, by its slot.
  int64_t entry(int64_t row, int64_t slot, int64_t head) const {
    const uint32_t at = static_cast<uint32_t>(slot), size = static_cast<uint32_t>(page_size);  // quicker than 64 bits
    return tile(row, at / size, head) + at % size * head_dim;
  }
  T* bounds_of(int64_t row, int64_t page, int64_t head) const {
    return bounds + (physical(row, page) * kv_heads + head) * 2 * head_dim;
  }
  // The maximum of channel 0; that of channel d is 2 d kLanePages further, its minimum kLanePages behind it.
  T* lane_of(int64_t row, int64_t page, int64_t head) const {
    const int64_t at = physical(row, page);
    return bounds + (at / kLanePages * kv_heads + head) * 2 * head_dim * kLanePages + at % kLanePages;
  }
  int64_t valid(int64_t row, int64_t page) const {
    const int64_t left = lengths[row] - page * page_size;
    return left < page_size ? left : page_size;
  }
};

}  // namespace questbench
