// Plain views of the tensors that every op works on: pointers and strides, no framework.
#pragma once

#include <cstdint>

namespace questbench {

// Keys, values and bounds in physical pages, and the logical pages of each row.
template <typename T>
struct Paged {
  T* k;       // [N, kv_heads, page_size, head_dim]
  T* v;       // same
  T* bounds;  // [N, kv_heads, 2, head_dim]: max, min; may be null
  const int32_t* table;
  int64_t table_stride;  // elements between rows of the page table
  int32_t* lengths;      // [rows]
  int64_t rows, kv_heads, page_size, head_dim;

  int64_t pages_of(int64_t row) const { return (lengths[row] + page_size - 1) / page_size; }
  int64_t physical(int64_t row, int64_t page) const { return table[row * table_stride + page]; }
  int64_t tile(int64_t row, int64_t page, int64_t head) const {
    return (physical(row, page) * kv_heads + head) * page_size * head_dim;
  }
  T* bounds_of(int64_t row, int64_t page, int64_t head) const {
    return bounds + (physical(row, page) * kv_heads + head) * 2 * head_dim;
  }
  int64_t valid(int64_t row, int64_t page) const {
    const int64_t left = lengths[row] - page * page_size;
    return left < page_size ? left : page_size;
  }
};

}  // namespace questbench
