// Products of rows that are read one after the other, as one stream, with running sums along the row.
//
// The hardware's prefetcher follows a stream, and is lost where a register block takes a piece of each of its rows in turn
// (docs/kernels.md, "Row after row"). So this is for what waits for memory: weights, and keys of a single query head.
#pragma once

#include "questbench/blocks.h"

namespace questbench {

// Rows at a time: 8 sums for so many queries.
template <int kQueries>
constexpr int kStreamed = 8 / kQueries;

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(__AVX512F__)

// sum[g * kStreamed] is row . q[g], lanes apart, q arranged; as many bytes from `fetched` on go into the cache of kLevel.
// One running sum per product is the order of the register blocks, to the bit; two wait less for each other.
template <typename T, int kQueries, int kSums, int kLevel>
__attribute__((always_inline)) inline void stream_row(const T* row, const float* q, int64_t n, const float* mask,
                                                      const T* fetched, __m256* sum) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t whole = n / kLanes * kLanes, width = query_width(n);
  __m256 a[kQueries], b[kQueries];
#pragma GCC unroll 4
  for (int g = 0; g < kQueries; ++g) a[g] = b[g] = _mm256_setzero_ps();
  const auto add = [&]<bool kMasked>(const T* from, const float* x) __attribute__((always_inline)) {
    const Sixteen taken = widen<kMasked>(from, mask);
#pragma GCC unroll 4
    for (int g = 0; g < kQueries; ++g) {
      a[g] = _mm256_fmadd_ps(taken.a, _mm256_loadu_ps(x + g * width), a[g]);
      __m256& second = kSums == 1 ? a[g] : b[g];
      second = _mm256_fmadd_ps(taken.b, _mm256_loadu_ps(x + g * width + kHalf), second);
    }
  };
  int64_t c = 0;
  for (; c + kLine <= whole; c += kLine) {
    if (kLevel > 0) prefetch_row<kLevel>(fetched + c, 64);
#pragma GCC unroll 2
    for (int64_t i = 0; i < kLine; i += kLanes) add.template operator()<false>(row + c + i, q + c + i);
  }
  for (; c < whole; c += kLanes) add.template operator()<false>(row + c, q + c);
  if (whole < n) add.template operator()<true>(row + n - kLanes, q + whole);
#pragma GCC unroll 4
  for (int g = 0; g < kQueries; ++g) sum[g * kStreamed<kQueries>] = kSums == 1 ? a[g] : _mm256_add_ps(a[g], b[g]);
}

// out[g * kStreamed + r] = q[g] . rows[r] for r < count <= kStreamed, rows of n >= 16 elements, q arranged; the rest of out
// is zero. Row r fetches as many bytes as it has from fetched(r) on.
template <typename T, int kQueries, int kSums, int kLevel, typename F>
__attribute__((always_inline)) inline void multiply_stream(const T* rows, int64_t row_stride, int count, const float* q,
                                                           int64_t n, F fetched, float* out) {
  alignas(32) float mask[kLanes] = {};
  if (n % kLanes > 0) tail_mask<T>(n, mask);
  alignas(32) __m256 sum[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) sum[i] = _mm256_setzero_ps();
  for (int r = 0; r < count; ++r) stream_row<T, kQueries, kSums, kLevel>(rows + r * row_stride, q, n, mask, fetched(r), sum + r);
  sums_of_eight(sum, out);
}

// out[t] = q . rows[t] for t < count, q arranged. Whole rows of `next` are fetched into the cache of kLevel; 0 for none.
template <typename T, int kLevel>
__attribute__((noinline)) void multiply_one(const T* rows, int64_t row_stride, int count, const float* q, int64_t n,
                                            float* out, const T* next, int64_t next_stride) {
  float sums[kStreamed<1>];
  for (int t = 0; t < count; t += kStreamed<1>) {
    const int taken = std::min(count - t, kStreamed<1>);
    const auto fetched = [&](int r) { return kLevel > 0 ? next + (t + r) * next_stride : nullptr; };
    multiply_stream<T, 1, 1, kLevel>(rows + t * row_stride, row_stride, taken, q, n, fetched, sums);
    std::copy_n(sums, taken, out + t);
  }
}

#endif

}  // namespace questbench
