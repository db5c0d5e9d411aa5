// Storage types and the shapes that every op shares. No framework: pointers and strides only.
#pragma once

#include <cstdint>
#include <cstring>

namespace questbench {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline int ElementBytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

template <class To, class From>
inline To BitCast(From value) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

inline int64_t CeilDiv(int64_t value, int64_t by) { return (value + by - 1) / by; }
inline int64_t RoundUp(int64_t value, int64_t to) { return CeilDiv(value, to) * to; }

// Entries of a batch of rows in pages: slot t of row b is in physical page table[b][t / page_size].
//   k, v    [N, heads, page_size, dim] contiguous
//   bounds  [N, heads, 2, dim] contiguous: largest (0) and smallest (1) key of a page per channel
struct Paged {
  char* k = nullptr;
  char* v = nullptr;
  char* bounds = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t page_size = 0;
  int64_t dim = 0;
  const int32_t* table = nullptr;
  int64_t table_stride = 0;
  int64_t table_width = 0;
  const int32_t* lengths = nullptr;

  int64_t RowBytes() const { return dim * ElementBytes(dtype); }
  int64_t PagesOf(int64_t row) const { return CeilDiv(lengths[row], page_size); }
  // Bytes from k (or v) to the first slot of one head of a physical page.
  int64_t PageOffset(int64_t page, int64_t head) const {
    return (page * heads + head) * page_size * RowBytes();
  }
  int64_t BoundsOffset(int64_t page, int64_t head) const {
    return (page * heads + head) * 2 * RowBytes();
  }
};

// A tensor [rows, heads, slots] with a contiguous last dimension.
template <class T>
struct PerSlot {
  T* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;

  T* At(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

}  // namespace questbench
