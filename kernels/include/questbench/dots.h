// Products of the queries of one group with up to 16 stored rows: out[g][t] = q[g] . row[t].
//
// Rows are read once for all queries of the group. Sums are fp32; bf16 pairs are multiplied exactly.
#pragma once

#include <vector>

#include "questbench/vector.h"

namespace questbench {

// How a query is held for products with rows of T: as it is stored where the hardware multiplies that, else as fp32.
template <typename T>
struct QueryOf {
  using type = float;
};
#if defined(__AVX512BF16__) && defined(__AVX512F__)
template <>
struct QueryOf<bf16> {
  using type = bf16;
};
#endif
template <typename T>
using Query = typename QueryOf<T>::type;

inline void put(float x, float* out) { *out = x; }
inline void put(float x, bf16* out) { from_float(x, out); }

// One row against one query: 16 partial sums. D > 0 is a compile-time width, D == 0 takes `width`.
template <typename T, int D>
struct Row {
  __attribute__((always_inline)) static inline Vec dot(const T* row, const float* q, int64_t width) {
    const int64_t n = D > 0 ? D : width, whole = n / kLanes * kLanes;
    Vec sum = {};
#pragma GCC unroll 16
    for (int64_t c = 0; c < whole; c += kLanes) sum += load(row + c) * load(q + c);
    if (D % kLanes != 0 || D == 0)
      for (int64_t c = whole; c < n; ++c) sum[c - whole] += to_float(row[c]) * q[c];
    return sum;
  }
};

#if defined(__AVX512BF16__) && defined(__AVX512F__)
template <int D>
struct Row<bf16, D> {
  __attribute__((always_inline)) static inline Vec dot(const bf16* row, const bf16* q, int64_t width) {
    const int64_t n = D > 0 ? D : width, whole = n / 32 * 32;
    __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int64_t c = 0; c < whole; c += 32)
      sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(row + c), (__m512bh)_mm512_loadu_si512(q + c));
    Vec out = (Vec)sum;
    if (D % 32 != 0 || D == 0)
      for (int64_t c = whole; c < n; ++c) out[(c - whole) % kLanes] += to_float(row[c]) * to_float(q[c]);
    return out;
  }
};
#endif

// One block of up to 16 rows against one query. kFetch: each row also fetches one row of `next`.
template <typename T, int D, bool kFetch>
__attribute__((noinline)) void dots_of(const T* rows, int64_t row_stride, int count, const Query<T>* q, int64_t n,
                                       float* out, const T* next, int64_t next_stride) {
  Vec partial[kLanes];
  if (count == kLanes) {
    const T* row = rows;
#pragma GCC unroll 16
    for (int t = 0; t < kLanes; ++t, row += row_stride) {
      if (kFetch) {
        prefetch_row<true>(next, n * static_cast<int64_t>(sizeof(T)));
        next += next_stride;
      }
      partial[t] = Row<T, D>::dot(row, q, n);
      // Keeps the rows in order and their addresses few; else all 16 are worked out first and spill the sums.
      asm volatile("" : "+r"(row));
    }
  } else {
    for (int t = 0; t < kLanes; ++t) partial[t] = Row<T, D>::dot(rows + (t < count ? t : 0) * row_stride, q, n);
  }
  store(out, sums_of(partial));
}

// out[g * out_stride + t] = q[g] . rows[t] for t < 16; lanes from `count` on hold rubbish.
//
// One query at a time against 16 rows: the 16 running sums stay in registers, the rows in the first-level cache.
// `next` (may be null) is the first of `count` rows that will be read later; they are fetched ahead. With one query
// the fetches are spread over the rows and keep the queue of outstanding misses filled. With several, the first pass
// would wait for its own rows: they are fetched well ahead, in one go. Both measured.
template <typename T, int D>
inline void dots(const T* rows, int64_t row_stride, int count, const Query<T>* q, int64_t width, int group, float* out,
                 int64_t out_stride, const T* next, int64_t next_stride) {
  const int64_t n = D > 0 ? D : width;
  if (next == nullptr) {
    for (int g = 0; g < group; ++g) dots_of<T, D, false>(rows, row_stride, count, q + g * n, n, out + g * out_stride, next, 0);
  } else if (group == 1) {
    dots_of<T, D, true>(rows, row_stride, count, q, n, out, next, next_stride);
  } else {
    const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
    if (next_stride == n) {
      prefetch_slowly(next, count * bytes);
    } else {
#pragma GCC unroll 1
      for (int t = 0; t < count; ++t) prefetch_slowly(next + t * next_stride, bytes);
    }
    for (int g = 0; g < group; ++g) dots_of<T, D, false>(rows, row_stride, count, q + g * n, n, out + g * out_stride, next, 0);
  }
}

}  // namespace questbench
