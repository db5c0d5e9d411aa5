// Register blocks for processors with 16 vectors of 8 floats (AVX2): products of several queries with several rows, and
// weighted sums of rows for several heads, with the running sums in registers.
//
// A row is widened to fp32 once for all queries of a block. 32 bytes of bf16 are 16 elements, of which a shift and a mask
// give those in even and those in odd places; queries and sums are held in that order (`arrange`, `settle_blocks`).
// Eight running sums hide the latency of the two multiply-adds that start per cycle, and leave room for the operands.
#pragma once

#include <algorithm>
#include <type_traits>

#include "questbench/choices.h"
#include "questbench/vector.h"

namespace questbench {

// Floats of a query of n channels as the blocks read it: what whole vectors leave over has one of its own.
inline int64_t query_width(int64_t n) { return kBlocks && n >= kLanes ? (n + kLanes - 1) / kLanes * kLanes : n; }

// Where the blocks hold channel d of n beside rows of T.
template <typename T>
inline int64_t place_of(int64_t d, int64_t n) {
  if (!kBlocks || n < kLanes) return d;
  const int64_t whole = n / kLanes * kLanes, first = d < whole ? d / kLanes * kLanes : whole;
  const int64_t at = d < whole ? d - first : d - (n - kLanes);
  return first + (std::is_same_v<T, bf16> ? at % 2 * (kLanes / 2) + at / 2 : at);
}

// A query of n channels in the order of the blocks; zeros where the last vector holds what another one has already.
template <typename T, typename From>
inline void arrange(const From* q, int64_t n, float* out) {
  const int64_t whole = kBlocks && n >= kLanes ? n / kLanes * kLanes : 0;
  // What place_of says, without asking it for every channel: rows of linear layers are thousands of them.
  for (int64_t first = 0; first < whole; first += kLanes)
    for (int64_t i = 0; i < kLanes / 2; ++i) {
      const bool apart = std::is_same_v<T, bf16>;
      out[first + i] = to_float(q[first + (apart ? 2 * i : i)]);
      out[first + kLanes / 2 + i] = to_float(q[first + (apart ? 2 * i + 1 : kLanes / 2 + i)]);
    }
  std::fill_n(out + whole, query_width(n) - whole, 0.0f);
  for (int64_t d = whole; d < n; ++d) out[place_of<T>(d, n)] = to_float(q[d]);
}

// Brings one head's sums of n columns in order.
template <typename T>
inline void settle_blocks(int64_t n, float* acc) {
  if (n < kLanes) return;
  float mixed[kLanes];
  for (int64_t first = 0; first < n; first += kLanes) {
    const int64_t base = std::min(first, n - kLanes);
    std::copy_n(acc + first, kLanes, mixed);
    for (int64_t d = first; d < std::min(first + kLanes, n); ++d) {
      const int64_t at = d - base;
      acc[d] = mixed[std::is_same_v<T, bf16> ? at % 2 * (kLanes / 2) + at / 2 : at];
    }
  }
}

// out[g * out_stride + t] = q[g] . rows[t] for t < count, q arranged. Whole rows of `next` are fetched; null for none.
// No bit of the result depends on the choice: each sum runs over the channels in the same order.
template <typename T>
void multiply_blocks(const T* rows, int64_t row_stride, int count, const float* q, int64_t n, int group, float* out,
                     int64_t out_stride, const T* next, int64_t next_stride, const Choice& choice);

// acc[g][d] += sum_t p[g][t] tile[t][d], rows of `acc` `width` apart and in order after settle_blocks. Rows of `next` are
// fetched; null for none. No bit of the result depends on the choice.
template <typename T>
void weigh_blocks(const T* tile, int count, const float* p, int64_t p_stride, int heads, int64_t n, float* acc,
                  int64_t width, const T* next, const Choice& choice);

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(__AVX512F__)

constexpr int kHalf = kLanes / 2;  // floats in a register

// Keeps a loaded value in its register: folded into each of its uses, it would be loaded once for every one of them, and
// loads, two per cycle, would become the limit.
template <typename V>
__attribute__((always_inline)) inline V held(V x) {
  asm("" : "+x"(x));
  return x;
}

// 16 elements as two registers. kMasked keeps those that `mask` has bits for.
struct Sixteen {
  __m256 a, b;
};
template <bool kMasked>
__attribute__((always_inline)) inline Sixteen widen(const float* p, const float* mask) {
  Sixteen out{held(_mm256_loadu_ps(p)), held(_mm256_loadu_ps(p + kHalf))};
  if (kMasked) out = {_mm256_and_ps(out.a, _mm256_loadu_ps(mask)), _mm256_and_ps(out.b, _mm256_loadu_ps(mask + kHalf))};
  return out;
}
template <bool kMasked>
__attribute__((always_inline)) inline Sixteen widen(const fp16* p, const float* mask) {
  const __m128i* at = reinterpret_cast<const __m128i*>(p);
  Sixteen out{_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
  if (kMasked) out = {_mm256_and_ps(out.a, _mm256_loadu_ps(mask)), _mm256_and_ps(out.b, _mm256_loadu_ps(mask + kHalf))};
  return out;
}
template <bool kMasked>
__attribute__((always_inline)) inline Sixteen widen(const bf16* p, const float* mask) {
  const __m256i both = held(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  Sixteen out{_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
              _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
  if (kMasked) out = {_mm256_and_ps(out.a, _mm256_loadu_ps(mask)), _mm256_and_ps(out.b, _mm256_loadu_ps(mask + kHalf))};
  return out;
}

// out[i] is the sum over the lanes of rows[i]; always in the same order.
__attribute__((always_inline)) inline void sums_of_eight(const __m256* rows, float* out) {
  __m256 two[4], four[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    two[i] = _mm256_add_ps(_mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]), _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m256d x = _mm256_castps_pd(two[2 * i]), y = _mm256_castps_pd(two[2 * i + 1]);
    four[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    // Halves by themselves: to exchange them between registers is slow where registers are made of two.
    _mm_storeu_ps(out + 4 * i, _mm_add_ps(_mm256_castps256_ps128(four[i]), _mm256_extractf128_ps(four[i], 1)));
  }
}

// tail_lanes in the order of the registers.
template <typename T>
inline void tail_mask(int64_t n, float* mask) {
  const int32_t ones = -1;
  std::fill_n(mask, kLanes, 0.0f);
  for (int64_t d = n / kLanes * kLanes; d < n; ++d) std::memcpy(mask + place_of<T>(d, n) % kLanes, &ones, sizeof ones);
}

// Adds 16 channels of kRows rows times kQueries queries.
template <bool kMasked, typename T, int kRows, int kQueries>
__attribute__((always_inline)) inline void add_products(const T* rows, int64_t row_stride, const float* q, int64_t width,
                                                        const float* mask, __m256 (&sum)[8]) {
  static_assert(kRows * kQueries <= 8);
  if constexpr (kRows <= kQueries) {
    Sixteen row[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) row[r] = widen<kMasked>(rows + r * row_stride, mask);
#pragma GCC unroll 8
    for (int g = 0; g < kQueries; ++g) {
      const __m256 a = held(_mm256_loadu_ps(q + g * width)), b = held(_mm256_loadu_ps(q + g * width + kHalf));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[g * kRows + r] = _mm256_fmadd_ps(row[r].a, a, sum[g * kRows + r]);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[g * kRows + r] = _mm256_fmadd_ps(row[r].b, b, sum[g * kRows + r]);
    }
  } else {
    __m256 a[kQueries], b[kQueries];
#pragma GCC unroll 8
    for (int g = 0; g < kQueries; ++g) {
      a[g] = held(_mm256_loadu_ps(q + g * width));
      b[g] = held(_mm256_loadu_ps(q + g * width + kHalf));
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Sixteen row = widen<kMasked>(rows + r * row_stride, mask);
#pragma GCC unroll 8
      for (int g = 0; g < kQueries; ++g) sum[g * kRows + r] = _mm256_fmadd_ps(row.a, a[g], sum[g * kRows + r]);
#pragma GCC unroll 8
      for (int g = 0; g < kQueries; ++g) sum[g * kRows + r] = _mm256_fmadd_ps(row.b, b[g], sum[g * kRows + r]);
    }
  }
}

// kQueries queries against rows from `t` on, kRows at a time; returns the first row that is left.
template <typename T, int kRows, int kQueries>
__attribute__((noinline)) int multiply_rows(const T* rows, int64_t row_stride, int t, int count, const float* q, int64_t n,
                                            float* out, int64_t out_stride, const T* next, int64_t next_stride,
                                            int level) {
  const int64_t whole = n / kLanes * kLanes, width = query_width(n);
  alignas(32) float mask[kLanes];
  if (whole < n) tail_mask<T>(n, mask);
  for (; t + kRows <= count; t += kRows) {
    const T* own = rows + t * row_stride;
    const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
    if (next != nullptr && level == 1) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) prefetch_row<1>(next + (t + r) * next_stride, bytes);
    } else if (next != nullptr) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) prefetch_row<2>(next + (t + r) * next_stride, bytes);
    }
    __m256 sum[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sum[i] = _mm256_setzero_ps();
    for (int64_t c = 0; c < whole; c += kLanes)
      add_products<false, T, kRows, kQueries>(own + c, row_stride, q + c, width, nullptr, sum);
    if (whole < n) add_products<true, T, kRows, kQueries>(own + n - kLanes, row_stride, q + whole, width, mask, sum);
    if constexpr (kRows == 8) {
      sums_of_eight(sum, out + t);
    } else {
      alignas(32) float lanes[8];
      sums_of_eight(sum, lanes);
#pragma GCC unroll 8
      for (int g = 0; g < kQueries; ++g) std::memcpy(out + g * out_stride + t, lanes + g * kRows, kRows * sizeof(float));
    }
  }
  return t;
}

template <typename T, int kQueries>
inline void multiply_queries(const T* rows, int64_t row_stride, int count, const float* q, int64_t n, float* out,
                             int64_t out_stride, const T* next, int64_t next_stride, int level) {
  constexpr int kRows = kQueries > 2 ? 2 : 8 / kQueries;
  const auto from = [&]<int kNow>(int t) {
    return multiply_rows<T, kNow, kQueries>(rows, row_stride, t, count, q, n, out, out_stride, next, next_stride, level);
  };
  int t = from.template operator()<kRows>(0);
  if constexpr (kRows > 4)
    if (t + 4 <= count) t = from.template operator()<4>(t);
  if constexpr (kRows > 2)
    if (t + 2 <= count) t = from.template operator()<2>(t);
  if (t < count) from.template operator()<1>(t);
}

// Of so many queries or heads, how many the next register block takes. Five are three and two: a block of one query
// widens rows for itself.
inline int block_of(int left, int most) {
  if (most < 4) return std::min(left, most);
  return left >= 6 || left == 4 ? 4 : std::min(left, 3);
}

template <typename T>
void multiply_blocks(const T* rows, int64_t row_stride, int count, const float* q, int64_t n, int group, float* out,
                     int64_t out_stride, const T* next, int64_t next_stride, const Choice& choice) {
  if (n < kLanes) {
    for (int g = 0; g < group; ++g)
      for (int t = 0; t < count; ++t) {
        float sum = 0;
        for (int64_t d = 0; d < n; ++d) sum += to_float(rows[t * row_stride + d]) * q[g * n + d];
        out[g * out_stride + t] = sum;
      }
    return;
  }
  const int64_t width = query_width(n);
  while (group > 0) {
    const int taken = block_of(group, choice.queries);
    const auto go = [&]<int kQueries>() {
      multiply_queries<T, kQueries>(rows, row_stride, count, q, n, out, out_stride, next, next_stride, choice.level);
    };
    if (taken == 4) go.template operator()<4>();
    if (taken == 3) go.template operator()<3>();
    if (taken == 2) go.template operator()<2>();
    if (taken == 1) go.template operator()<1>();
    q += taken * width, out += taken * out_stride, group -= taken, next = nullptr;
  }
}

// 16 kParts columns for kHeads heads. Every row fetches as many bytes as it reads, one after the other from `next` on,
// into the cache of kLevel; 0 for none.
template <typename T, int kHeads, int kParts, int kLevel>
__attribute__((noinline)) void weigh_columns(const T* tile, int count, const float* p, int64_t p_stride, int64_t n,
                                             float* acc, int64_t width, const T* next) {
  __m256 sum[kHeads][2 * kParts];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kParts; ++i) sum[h][i] = _mm256_loadu_ps(acc + h * width + i * kHalf);
  constexpr int kRead = kParts * kLanes * static_cast<int>(sizeof(T));
  for (int t = 0; t < count; ++t) {
    if (kLevel > 0 && t * kRead % 64 == 0) prefetch_row<kLevel>(next + t * kParts * kLanes, kRead);
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) {
      const Sixteen row = widen<false>(tile + t * n + i * kLanes, nullptr);
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) {
        const __m256 weight = held(_mm256_broadcast_ss(p + h * p_stride + t));
        sum[h][2 * i] = _mm256_fmadd_ps(weight, row.a, sum[h][2 * i]);
        sum[h][2 * i + 1] = _mm256_fmadd_ps(weight, row.b, sum[h][2 * i + 1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kParts; ++i) _mm256_storeu_ps(acc + h * width + i * kHalf, sum[h][i]);
}

// All columns for kHeads heads, as many at a time as fill eight registers with sums.
template <typename T, int kHeads>
inline void weigh_heads(const T* tile, int count, const float* p, int64_t p_stride, int64_t n, float* acc, int64_t width,
                        const T* next, int level) {
  constexpr int kParts = kHeads == 1 ? 4 : kHeads == 2 ? 2 : 1;
  const int64_t whole = n / kLanes * kLanes;
  // The columns of all rows up to d, side by side, are what has been fetched before.
  const auto go = [&]<int kWide>(int64_t d, int64_t to) {
    if (next == nullptr) {
      weigh_columns<T, kHeads, kWide, 0>(tile + d, count, p, p_stride, n, acc + to, width, nullptr);
    } else if (level == 1) {
      weigh_columns<T, kHeads, kWide, 1>(tile + d, count, p, p_stride, n, acc + to, width, next + d * count);
    } else {
      weigh_columns<T, kHeads, kWide, 2>(tile + d, count, p, p_stride, n, acc + to, width, next + d * count);
    }
  };
  int64_t d = 0;
  for (; d + kParts * kLanes <= whole; d += kParts * kLanes) go.template operator()<kParts>(d, d);
  if constexpr (kParts > 1)
    for (; d + kLanes <= whole; d += kLanes) go.template operator()<1>(d, d);
  if (whole < n) go.template operator()<1>(n - kLanes, whole);
}

template <typename T>
void weigh_blocks(const T* tile, int count, const float* p, int64_t p_stride, int heads, int64_t n, float* acc,
                  int64_t width, const T* next, const Choice& choice) {
  if (n < kLanes) {
    for (int g = 0; g < heads; ++g)
      for (int64_t c = 0; c < n; ++c)
        for (int t = 0; t < count; ++t) acc[g * width + c] += p[g * p_stride + t] * to_float(tile[t * n + c]);
    return;
  }
  while (heads > 0) {
    const int taken = block_of(heads, choice.heads);
    if (taken == 4) weigh_heads<T, 4>(tile, count, p, p_stride, n, acc, width, next, choice.level);
    if (taken == 3) weigh_heads<T, 3>(tile, count, p, p_stride, n, acc, width, next, choice.level);
    if (taken == 2) weigh_heads<T, 2>(tile, count, p, p_stride, n, acc, width, next, choice.level);
    if (taken == 1) weigh_heads<T, 1>(tile, count, p, p_stride, n, acc, width, next, choice.level);
    p += taken * p_stride, acc += taken * width, heads -= taken, next = nullptr;
  }
}
#endif

}  // namespace questbench
