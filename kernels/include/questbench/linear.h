// y = W x + b for a few input rows: every weight is read once from memory, so that a step is as fast as memory.
//
// A row is alone what it is among others, to the bit: its sums run in the same order in every batch.
#pragma once

#include <algorithm>

#include "questbench/dots.h"
#include "questbench/streams.h"

namespace questbench {

constexpr int kChains = 2;  // running sums per product, alike for every batch
constexpr int64_t kAhead = 4096;  // bytes: weights are fetched one page ahead, which hardware does not do by itself
constexpr int64_t kStreamAhead = 1024;  // the same for rows in one stream (streams.h), which the hardware follows too

template <typename T>
struct Linear {
  const T* weight;  // [outputs, inputs], contiguous
  const T* bias;    // [outputs] or null
  const T* x;       // [rows, inputs], contiguous
  T* y;             // [rows, outputs] with rows y_row apart
  int64_t y_row;
  int64_t rows, inputs, outputs;
  int threads;
};
template <typename T>
void linear(const Linear<T>& job);

// 16 products of one row of W with one row of x added to a running sum; 32 of them where pairs are multiplied at once.
template <typename T>
struct Products {
  static constexpr int64_t kWidth = kLanes;
  typedef Vec Loaded;
  __attribute__((always_inline)) static inline Loaded take(const T* p) { return load(p); }
  __attribute__((always_inline)) static inline Vec add(Vec sum, Loaded w, Loaded x) { return sum + w * x; }
};

#if defined(__AVX512BF16__) && defined(__AVX512F__)
template <>
struct Products<bf16> {
  static constexpr int64_t kWidth = 2 * kLanes;
  typedef __m512i Loaded;
  __attribute__((always_inline)) static inline Loaded take(const bf16* p) { return _mm512_loadu_si512(p); }
  __attribute__((always_inline)) static inline Vec add(Vec sum, Loaded w, Loaded x) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
  }
};
#endif

// out[b] = w . x[b] for one row of W and kBatch rows of x; each product has kChains running sums side by side.
template <typename T, int kBatch>
__attribute__((always_inline)) inline void products(const T* w, const T* x, int64_t n, int64_t ahead, float* out) {
  using P = Products<T>;
  Vec sums[kBatch][kChains] = {};
  const int64_t step = kChains * P::kWidth;
  int64_t c = 0;
  for (; c + step <= n; c += step) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) {
      const int64_t at = c + i * P::kWidth;
      const typename P::Loaded row = P::take(w + at);
      __builtin_prefetch(w + at + ahead, 0, 3);
#pragma GCC unroll 4
      for (int b = 0; b < kBatch; ++b) sums[b][i] = P::add(sums[b][i], row, P::take(x + b * n + at));
    }
  }
  for (; c + P::kWidth <= n; c += P::kWidth) {
    const typename P::Loaded row = P::take(w + c);
    for (int b = 0; b < kBatch; ++b) sums[b][0] = P::add(sums[b][0], row, P::take(x + b * n + c));
  }
  for (int b = 0; b < kBatch; ++b) {
    Vec all = sums[b][0];
    for (int i = 1; i < kChains; ++i) all += sums[b][i];
    float sum = sum_of(all);
    for (int64_t rest = c; rest < n; ++rest) sum += to_float(w[rest]) * to_float(x[b * n + rest]);
    out[b] = sum;
  }
}

// Outputs first .. last - 1 of kBatch rows of x.
template <typename T, int kBatch>
__attribute__((noinline)) void linear_block(const Linear<T>& job, int64_t row, int64_t first, int64_t last) {
  const int64_t n = job.inputs, fetched = kAhead / static_cast<int64_t>(sizeof(T));
  float sums[kBatch];
  for (int64_t o = first; o < last; ++o) {
    // Never past the end of W: the last rows fetch themselves.
    const int64_t ahead = (o + 1) * n + fetched <= job.outputs * n ? fetched : 0;
    products<T, kBatch>(job.weight + o * n, job.x + row * n, n, ahead, sums);
    const float bias = job.bias ? to_float(job.bias[o]) : 0.0f;
    for (int b = 0; b < kBatch; ++b) from_float(sums[b] + bias, job.y + (row + b) * job.y_row + o);
  }
}

// The same for rows of W in one stream (streams.h), with the rows of x arranged.
template <typename T, int kBatch>
inline void linear_stream(const Linear<T>& job, const float* x, int64_t row, int64_t first, int64_t last) {
  const int64_t n = job.inputs, fetched = kStreamAhead / static_cast<int64_t>(sizeof(T));
  float sums[kStreamed<kBatch> * kBatch];
  for (int64_t o = first; o < last; o += kStreamed<kBatch>) {
    const T* rows = job.weight + o * n;
    const int count = static_cast<int>(std::min<int64_t>(kStreamed<kBatch>, last - o));
    multiply_stream<T, kBatch, kChains, 1>(rows, n, count, x, n, [&](int r) { return rows + r * n + fetched; }, sums);
    for (int b = 0; b < kBatch; ++b)
      for (int r = 0; r < count; ++r)
        from_float(sums[b * kStreamed<kBatch> + r] + (job.bias ? to_float(job.bias[o + r]) : 0.0f),
                   job.y + (row + b) * job.y_row + o + r);
  }
}

constexpr int64_t kItemBytes = 1 << 16;  // of weights per work item: long enough to stream, short enough to share out
constexpr int64_t kAlone = 1 << 16;  // bytes of weights below which a second thread costs more than it brings

template <typename T>
int64_t weight_bytes(const Linear<T>& job) {
  return job.outputs * job.inputs * static_cast<int64_t>(sizeof(T));
}

// Outputs of one work item: whole sets of 8 sums, if there are several.
template <typename T>
int64_t item_outputs(const Linear<T>& job) {
  const int64_t outputs = kItemBytes / std::max<int64_t>(job.inputs * static_cast<int64_t>(sizeof(T)), 1);
  return outputs >= 8 ? outputs / 8 * 8 : std::max<int64_t>(outputs, 1);
}
template <typename T>
int64_t linear_items(const Linear<T>& job) {
  return (job.outputs + item_outputs(job) - 1) / item_outputs(job);
}

// Floats that linear_item wants the rows of x arranged in; none where it reads them as they are.
template <typename T>
int64_t arranged_size(const Linear<T>& job) {
  return kBlocks && job.inputs >= kLanes ? job.rows * query_width(job.inputs) : 0;
}
template <typename T>
void arrange_rows(const Linear<T>& job, float* arranged) {
  if (arranged_size(job) == 0) return;
  for (int64_t row = 0; row < job.rows; ++row)
    arrange<T>(job.x + row * job.inputs, job.inputs, arranged + row * query_width(job.inputs));
}

// One of linear_items: its outputs for all rows of x.
template <typename T>
void linear_item(const Linear<T>& job, const float* arranged, int64_t item) {
  const int64_t first = item * item_outputs(job), last = std::min(first + item_outputs(job), job.outputs);
  const bool blocks = arranged_size(job) > 0;
  const auto part = [&]<int kBatch>(int64_t row) {
    if constexpr (kBlocks)
      if (blocks) return linear_stream<T, kBatch>(job, arranged + row * query_width(job.inputs), row, first, last);
    linear_block<T, kBatch>(job, row, first, last);
  };
  int64_t row = 0;
  for (; row + 4 <= job.rows; row += 4) part.template operator()<4>(row);
  if (job.rows - row >= 2) part.template operator()<2>(row), row += 2;
  if (job.rows - row == 1) part.template operator()<1>(row);
}

}  // namespace questbench
