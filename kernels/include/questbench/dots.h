// Products of the queries of one group with up to 16 stored rows: out[g][t] = q[g] . row[t].
//
// Rows are read once for all queries of the group. Sums are fp32; bf16 pairs are multiplied exactly.
#pragma once

#include <array>
#include <type_traits>
#include <utility>
#include <vector>

#include "questbench/streams.h"

namespace questbench {

// How a query is held for products with rows of T: as it is stored where the hardware multiplies that, else as fp32.
template <typename T>
struct QueryOf {
  using type = float;
};
#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__)
template <>
struct QueryOf<bf16> {
  using type = bf16;
};
#endif
template <typename T>
using Query = typename QueryOf<T>::type;

inline void put(float x, float* out) { *out = x; }
inline void put(float x, bf16* out) { from_float(x, out); }

// One query of n channels as `dots` reads it beside rows of T: query_width(n) elements.
template <typename T, typename From>
inline void put_query(const From* q, int64_t n, Query<T>* out) {
  if constexpr (kBlocks) {
    arrange<T>(q, n, out);
  } else {
    for (int64_t d = 0; d < n; ++d) put(to_float(q[d]), out + d);
  }
}

// One row against one query: 16 partial sums. D > 0 is a compile-time width, D == 0 takes `width`.
template <typename T, int D>
struct Row {
  __attribute__((always_inline)) static inline Vec dot(const T* row, const float* q, int64_t width) {
    const int64_t n = D > 0 ? D : width, whole = n / kLanes * kLanes;
    Vec sum = {};
#pragma GCC unroll 16
    for (int64_t c = 0; c < whole; c += kLanes) sum += load(row + c) * load(q + c);
    if (D % kLanes == 0 && D > 0) return sum;
    if (n >= kLanes) {
      if (whole < n) sum += load_tail(row, n) * load_tail(q, n);
    } else {
      for (int64_t c = 0; c < n; ++c) set_lane(sum, c, sum[c] + to_float(row[c]) * q[c]);
    }
    return sum;
  }
};

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__)
template <int D>
struct Row<bf16, D> {
  __attribute__((always_inline)) static inline Vec dot(const bf16* row, const bf16* q, int64_t width) {
    const int64_t n = D > 0 ? D : width, whole = n / 32 * 32;
    __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int64_t c = 0; c < whole; c += 32)
      sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(row + c), (__m512bh)_mm512_loadu_si512(q + c));
    if ((D % 32 != 0 || D == 0) && whole < n) {
      const __mmask32 rest = (1u << (n - whole)) - 1;
      sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(rest, row + whole),
                             (__m512bh)_mm512_maskz_loadu_epi16(rest, q + whole));
    }
    return (Vec)sum;
  }
};
#endif

// Widths known at run time only. In a loop over vectors the sums would live in memory, so there is straight code for
// every number of whole vectors, chosen once for 16 rows; what is left of a row comes in one more vector.
template <typename T, int kVecs, bool kTail>
__attribute__((noinline)) void rows_of(const T* rows, int64_t row_stride, int count, const float* q, int64_t n,
                                       const T* next, int64_t next_stride, int64_t bytes, Vec* out) {
  const Vec last = kTail ? load_tail(q, n) : Vec{};
  for (int t = 0; t < count; ++t) {
    const T* row = rows + t * row_stride;
    if (bytes > 0) prefetch_row(next + t * next_stride, bytes);
    Vec even = {}, odd = {};
#pragma GCC unroll 16
    for (int i = 0; i + 1 < kVecs; i += 2) {
      even += load(row + i * kLanes) * load(q + i * kLanes);
      odd += load(row + (i + 1) * kLanes) * load(q + (i + 1) * kLanes);
    }
    if constexpr (kVecs % 2 == 1) even += load(row + (kVecs - 1) * kLanes) * load(q + (kVecs - 1) * kLanes);
    if constexpr (kTail) odd += load_tail(row, n) * last;
    out[t] = even + odd;
  }
}

template <typename T, int... kVecs>
auto rows_table(std::integer_sequence<int, kVecs...>) {
  using Function = void (*)(const T*, int64_t, int, const float*, int64_t, const T*, int64_t, int64_t, Vec*);
  return std::array<std::array<Function, 2>, sizeof...(kVecs)>{
      {{rows_of<T, kVecs + 1, false>, rows_of<T, kVecs + 1, true>}...}};
}

template <typename T>
void any_rows(const T* rows, int64_t row_stride, int count, const float* q, int64_t n, const T* next,
              int64_t next_stride, int64_t bytes, Vec* out) {
  constexpr int kMost = 32;  // heads of 256, whose bounds are twice as wide
  static const auto table = rows_table<T>(std::make_integer_sequence<int, kMost>());
  const int64_t whole = n / kLanes;
  if (whole >= 1 && whole <= kMost)
    return table[whole - 1][n % kLanes != 0](rows, row_stride, count, q, n, next, next_stride, bytes, out);
  for (int t = 0; t < count; ++t) {
    if (bytes > 0) prefetch_row(next + t * next_stride, bytes);
    out[t] = Row<T, 0>::dot(rows + t * row_stride, q, n);
  }
}

// One row after the other against one query, the 16 sums in registers. kStride > 0 is a compile-time row stride. kLines
// lines of each of the `next` rows are fetched; -1 stands for whole rows.
template <typename T, int D, int kStride, int kLines>
__attribute__((always_inline)) inline Vec full_block(const T* rows, int64_t row_stride, const Query<T>* q, int64_t n,
                                                     const T* next, int64_t next_stride) {
  Vec partial[kLanes];
  if constexpr (D == 0 && std::is_same_v<Query<T>, float>) {
    const int64_t bytes = kLines < 0 ? n * static_cast<int64_t>(sizeof(T)) : kLines * 64;
    any_rows<T>(rows, row_stride, kLanes, q, n, next, next_stride, bytes, partial);
    return sums_of(partial);
  }
  const T* row = rows;
#pragma GCC unroll 16
  for (int t = 0; t < kLanes; ++t) {
    if (kLines != 0)
      prefetch_row(next + t * next_stride, kLines > 0 ? kLines * 64 : n * static_cast<int64_t>(sizeof(T)));
    partial[t] = Row<T, D>::dot(kStride > 0 ? rows + t * kStride : row, q, n);
    row += row_stride;
    // Keeps the rows in order and their addresses few; else all 16 are worked out first and spill the sums.
    if (kStride == 0) asm volatile("" : "+r"(row));
  }
  return sums_of(partial);
}

template <typename T, int D>
__attribute__((noinline)) void part_block(const T* rows, int64_t row_stride, int count, const Query<T>* q, int64_t n,
                                          int group, float* out, int64_t out_stride) {
  for (int g = 0; g < group; ++g) {
    Vec partial[kLanes] = {};
    if constexpr (D == 0 && std::is_same_v<Query<T>, float>) {
      any_rows<T>(rows, row_stride, count, q + g * n, n, nullptr, 0, 0, partial);
      store(out + g * out_stride, sums_of(partial));
      continue;
    }
    for (int t = 0; t < kLanes; ++t)
      partial[t] = Row<T, D>::dot(rows + (t < count ? t : 0) * row_stride, q + g * n, n);
    store(out + g * out_stride, sums_of(partial));
  }
}

template <typename T, int D, int kStride>
__attribute__((noinline)) void single_query(const T* rows, int64_t row_stride, const Query<T>* q, int64_t n, float* out,
                                            const T* next, int64_t next_stride) {
  constexpr int kLines = D > 0 ? D * static_cast<int>(sizeof(T)) / 64 : -1;
  store(out, full_block<T, D, kStride, kLines>(rows, row_stride, q, n, next, next_stride));
}

template <typename T, int D, int kStride>
__attribute__((noinline)) void several_queries(const T* rows, int64_t row_stride, const Query<T>* q, int64_t n,
                                               int group, float* out, int64_t out_stride, const T* next,
                                               int64_t next_stride) {
  const int64_t lines = n * static_cast<int64_t>(sizeof(T)) / 64, each = (lines + group - 1) / group;
  for (int g = 0; g < group; ++g) {
    const T* part = next + g * each * (64 / sizeof(T));
    Vec sums;
    if (g * each >= lines) {
      sums = full_block<T, D, kStride, 0>(rows, row_stride, q + g * n, n, nullptr, 0);
    } else if (each == 1) {
      sums = full_block<T, D, kStride, 1>(rows, row_stride, q + g * n, n, part, next_stride);
    } else {
      sums = full_block<T, D, kStride, 2>(rows, row_stride, q + g * n, n, part, next_stride);
    }
    store(out + g * out_stride, sums);
  }
}

// out[g * out_stride + t] = q[g] . rows[t] for t < 16; lanes from `count` on hold rubbish. Queries are put_query's.
//
// With register blocks see blocks.h, and streams.h for one query. Without them it is one query at a time against 16 rows:
// the 16 running sums stay in registers, the rows in the first-level cache. `next` is the first of 16 readable rows that
// will be read later (or these again); they are fetched ahead. With one query each row fetches a whole row, with several
// each pass over the rows fetches its share of every row.
template <typename T, int D>
inline void dots(const T* rows, int64_t row_stride, int count, const Query<T>* q, int64_t width, int group, float* out,
                 int64_t out_stride, const T* next, int64_t next_stride, const Choice& choice = {}) {
  const int64_t n = D > 0 ? D : width;
  if constexpr (kBlocks) {
    if (group == 1 && n >= kLanes) {
      if (next == nullptr) return multiply_one<T, 0>(rows, row_stride, count, q, n, out, next, next_stride);
      if (choice.level == 1) return multiply_one<T, 1>(rows, row_stride, count, q, n, out, next, next_stride);
      return multiply_one<T, 2>(rows, row_stride, count, q, n, out, next, next_stride);
    }
    multiply_blocks(rows, row_stride, count, q, n, group, out, out_stride, next, next_stride, choice);
  } else {
    if (next == nullptr) next = rows, next_stride = row_stride;
    if (count < kLanes) return part_block<T, D>(rows, row_stride, count, q, n, group, out, out_stride);
    if (row_stride == D && next_stride == D) {
      if (group == 1) return single_query<T, D, D>(rows, D, q, n, out, next, D);
      return several_queries<T, D, D>(rows, D, q, n, group, out, out_stride, next, D);
    }
    if (group == 1) return single_query<T, D, 0>(rows, row_stride, q, n, out, next, next_stride);
    several_queries<T, D, 0>(rows, row_stride, q, n, group, out, out_stride, next, next_stride);
  }
}

}  // namespace questbench
