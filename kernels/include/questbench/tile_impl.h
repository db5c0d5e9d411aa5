// Bodies of the micro-kernels of tile.h; included once per storage type so that the types compile in parallel.
// Template argument D is the head dimension where it is known to the compiler and 0 where it is not.
#pragma once

#include <type_traits>

#include "questbench/simd.h"
#include "questbench/tile.h"

namespace questbench {
namespace {

#if defined(QB_AVX512) && defined(__AVX512BF16__)
constexpr bool kBFloat16Dots = true;
#else
constexpr bool kBFloat16Dots = false;
#endif

template <int Bytes>
QB_INLINE void PrefetchRow(const char* row, int64_t bytes) {
  const int64_t end = Bytes != 0 ? Bytes : bytes;
#pragma GCC unroll 16
  for (int64_t i = 0; i < end; i += 64) __builtin_prefetch(row + i, 0, 3);
}

// ---- Sums over lanes of 16 vectors at once: a tree of 4 combining steps instead of 16 reductions ----

#if defined(QB_AVX512)
QB_INLINE F CombineSingles(F a, F b) { return _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b); }
QB_INLINE F CombineDoubles(F a, F b) {
  const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
  return _mm512_castpd_ps(_mm512_unpacklo_pd(x, y)) + _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
}
QB_INLINE F CombineQuarters(F a, F b) {
  return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
}
QB_INLINE F CombineFour(const F* v) {
  return CombineDoubles(CombineSingles(v[0], v[1]), CombineSingles(v[2], v[3]));
}
QB_INLINE void SumLanes(const F* v, float* sums) {
  const F front = CombineQuarters(CombineFour(v), CombineFour(v + 4));
  const F back = CombineQuarters(CombineFour(v + 8), CombineFour(v + 12));
  Store(sums, CombineQuarters(front, back));
}
#elif defined(QB_AVX2)
QB_INLINE F CombineSingles(F a, F b) { return _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b); }
QB_INLINE F CombineDoubles(F a, F b) {
  const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
  return _mm256_castpd_ps(_mm256_unpacklo_pd(x, y)) + _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
}
QB_INLINE F CombineFour(const F* v) {
  return CombineDoubles(CombineSingles(v[0], v[1]), CombineSingles(v[2], v[3]));
}
QB_INLINE void SumLanes(const F* v, float* sums) {
  for (int half = 0; half < 2; ++half) {
    const F a = CombineFour(v + 8 * half), b = CombineFour(v + 8 * half + 4);
    Store(sums + 8 * half, _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31));
  }
}
#else
QB_INLINE void SumLanes(const F* v, float* sums) {
  for (int r = 0; r < kTileRows; ++r) sums[r] = (v[r][0] + v[r][2]) + (v[r][1] + v[r][3]);
}
#endif

// ---- Dot products ----

template <class T>
void PrepareFloats(const T* q, int length, void* prepared) {
  float* to = static_cast<float*>(prepared);
  for (int d = 0; d < length; d += kPair, to += kPair) {
    F low, high;
    if (d + kPair <= length) {
      LoadPair(q + d, &low, &high);
    } else {
      LoadPairPart(q + d, length - d, &low, &high);
    }
    Store(to, low);
    Store(to + kLanes, high);
  }
}

template <class T>
QB_INLINE F DotRow(const T* row, const float* q, int length) {
  F even = Splat(0.0f), odd = Splat(0.0f), low, high;
  int d = 0;
#pragma GCC unroll 8
  for (; d + kPair <= length; d += kPair) {
    LoadPair(row + d, &low, &high);
    even = Fma(low, Load(q + d), even);
    odd = Fma(high, Load(q + d + kLanes), odd);
  }
  if (d < length) {
    LoadPairPart(row + d, length - d, &low, &high);
    even = Fma(low, Load(q + d), even);
    odd = Fma(high, Load(q + d + kLanes), odd);
  }
  return even + odd;
}

#if defined(QB_AVX512) && defined(__AVX512BF16__)
// Products of two bf16 are exact in fp32; the instruction adds them in fp32.
QB_INLINE F DotRow(const BFloat16* row, const BFloat16* q, int length) {
  F sum = Splat(0.0f);
  int d = 0;
#pragma GCC unroll 16
  for (; d + kPair <= length; d += kPair) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(row + d), (__m512bh)_mm512_loadu_si512(q + d));
  }
  if (d < length) {
    const __mmask32 mask = (1u << (length - d)) - 1;
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(mask, row + d),
                           (__m512bh)_mm512_loadu_si512(q + d));
  }
  return sum;
}
#endif

// Whether queries stay in storage type for the dot products.
template <class T>
constexpr bool kRawQueries = std::is_same_v<T, BFloat16> && kBFloat16Dots;

template <class T>
void PrepareAny(const T* q, int length, void* prepared) {
  if constexpr (kRawQueries<T>) {
    std::memset(prepared, 0, RoundUp(length, kPair) * sizeof(T));
    std::memcpy(prepared, q, length * sizeof(T));
  } else {
    PrepareFloats(q, length, prepared);
  }
}

template <class T>
void Prepare(const void* q, int dim, void* prepared) {
  PrepareAny(static_cast<const T*>(q), dim, prepared);
}

// [max(q, 0) | min(q, 0)]; NaN stays in both halves.
template <class T>
void PrepareSigned(const void* q, int dim, void* prepared) {
  const T* from = static_cast<const T*>(q);
  constexpr int kMost = 512;
  T halves[2 * kMost];
  T zero;
  FromFloat(0.0f, &zero);
  for (int d = 0; d < dim; ++d) {
    const float value = ToFloat(from[d]);
    halves[d] = value < 0.0f ? zero : from[d];
    halves[dim + d] = value > 0.0f ? zero : from[d];
  }
  PrepareAny(halves, 2 * dim, prepared);
}

// Length is Fixed where that is not 0.
template <class T, int Fixed>
QB_INLINE void TileDots(const char* base, const int64_t* offsets, const void* prepared, int length, float* sums,
                        Ahead ahead) {
  using Query = std::conditional_t<kRawQueries<T>, BFloat16, float>;
  const Query* q = static_cast<const Query*>(prepared);
  if (Fixed != 0) length = Fixed;
  F lanes[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    lanes[r] = DotRow(reinterpret_cast<const T*>(base + offsets[r]), q, length);
    if (ahead.base != nullptr) {
      PrefetchRow<Fixed * static_cast<int>(sizeof(T))>(ahead.base + ahead.offsets[r], length * sizeof(T));
    }
  }
  SumLanes(lanes, sums);
}

template <class T, int D>
void Dots(const char* base, const int64_t* offsets, const void* prepared, int dim, float* sums, Ahead ahead) {
  TileDots<T, D>(base, offsets, prepared, dim, sums, ahead);
}

template <class T, int D>
void ScoreDots(const char* base, const int64_t* offsets, const void* prepared, int dim, float* sums,
               Ahead ahead) {
  TileDots<T, 2 * D>(base, offsets, prepared, 2 * dim, sums, ahead);
}

template <class T>
float ScoreExactly(const void* query, const char* row, int dim) {
  const T* q = static_cast<const T*>(query);
  const T* largest = reinterpret_cast<const T*>(row);
  const T* smallest = largest + dim;
  float sum = 0.0f;
  for (int d = 0; d < dim; ++d) {
    const float upper = ToFloat(q[d]) * ToFloat(largest[d]);
    const float lower = ToFloat(q[d]) * ToFloat(smallest[d]);
    sum += upper != upper || upper > lower ? upper : lower;  // NaN in either wins
  }
  return sum;
}

// ---- Weighted sums of rows ----

// Channels [first, first + Pairs * kPair) of Heads accumulators, held in registers over the rows of the tile.
template <class T, int Heads, int Pairs, bool Part>
QB_INLINE void AccumulateBlock(const char* base, const int64_t* offsets, int rows, const float* weights,
                               int64_t weight_stride, float* sums, int64_t sum_stride, int first, int left) {
  F held[Heads][Pairs][2];
  for (int h = 0; h < Heads; ++h) {
    for (int p = 0; p < Pairs; ++p) {
      held[h][p][0] = Load(sums + h * sum_stride + first + p * kPair);
      held[h][p][1] = Load(sums + h * sum_stride + first + p * kPair + kLanes);
    }
  }
  for (int r = 0; r < rows; ++r) {
    const T* row = reinterpret_cast<const T*>(base + offsets[r]) + first;
    F low[Pairs], high[Pairs];
    for (int p = 0; p < Pairs; ++p) {
      if (Part) {
        LoadPairPart(row + p * kPair, left, &low[p], &high[p]);
      } else {
        LoadPair(row + p * kPair, &low[p], &high[p]);
      }
    }
    for (int h = 0; h < Heads; ++h) {
      const F weight = Splat(weights[h * weight_stride + r]);
      for (int p = 0; p < Pairs; ++p) {
        held[h][p][0] = Fma(weight, low[p], held[h][p][0]);
        held[h][p][1] = Fma(weight, high[p], held[h][p][1]);
      }
    }
  }
  for (int h = 0; h < Heads; ++h) {
    for (int p = 0; p < Pairs; ++p) {
      Store(sums + h * sum_stride + first + p * kPair, held[h][p][0]);
      Store(sums + h * sum_stride + first + p * kPair + kLanes, held[h][p][1]);
    }
  }
}

template <class T, int D, int Heads>
QB_INLINE void AccumulateHeads(const char* base, const int64_t* offsets, int rows, const float* weights,
                               int64_t weight_stride, float* sums, int64_t sum_stride, int dim) {
  constexpr int kPairs = Heads == 4 ? 2 : 4;  // as many accumulators as there are registers
  if (D != 0) dim = D;
  int d = 0;
  for (; d + kPairs * kPair <= dim; d += kPairs * kPair) {
    AccumulateBlock<T, Heads, kPairs, false>(base, offsets, rows, weights, weight_stride, sums, sum_stride, d, 0);
  }
  if (D != 0 && D % (kPairs * kPair) == 0) return;
  for (; d + kPair <= dim; d += kPair) {
    AccumulateBlock<T, Heads, 1, false>(base, offsets, rows, weights, weight_stride, sums, sum_stride, d, 0);
  }
  if (d < dim) {
    AccumulateBlock<T, Heads, 1, true>(base, offsets, rows, weights, weight_stride, sums, sum_stride, d, dim - d);
  }
}

template <class T, int D>
void Accumulate(const char* base, const int64_t* offsets, int rows, const float* weights, int64_t weight_stride,
                int heads, float* sums, int64_t sum_stride, int dim, Ahead ahead) {
  if (ahead.base != nullptr) {
    for (int r = 0; r < kTileRows; ++r) {
      PrefetchRow<D * static_cast<int>(sizeof(T))>(ahead.base + ahead.offsets[r], dim * sizeof(T));
    }
  }
  for (; heads >= 4; heads -= 4, weights += 4 * weight_stride, sums += 4 * sum_stride) {
    AccumulateHeads<T, D, 4>(base, offsets, rows, weights, weight_stride, sums, sum_stride, dim);
  }
  for (; heads >= 2; heads -= 2, weights += 2 * weight_stride, sums += 2 * sum_stride) {
    AccumulateHeads<T, D, 2>(base, offsets, rows, weights, weight_stride, sums, sum_stride, dim);
  }
  if (heads > 0) {
    AccumulateHeads<T, D, 1>(base, offsets, rows, weights, weight_stride, sums, sum_stride, dim);
  }
}

template <class T>
void Finish(const float* sums, float factor, int dim, void* out) {
  T* to = static_cast<T*>(out);
  const F scale = Splat(factor);
  for (int d = 0; d < dim; d += kPair) {
    const F low = Load(sums + d) * scale, high = Load(sums + d + kLanes) * scale;
    if (d + kPair <= dim) {
      StorePair(to + d, low, high);
    } else {
      StorePairPart(to + d, dim - d, low, high);
    }
  }
}

// ---- Page bounds ----

QB_INLINE F WiderOf(F held, F value) { return (value > held) | (value != value) ? value : held; }

template <class T, bool Part>
QB_INLINE void BoundsBlock(const T* rows, int64_t count, int dim, int width, T* largest, T* smallest) {
  F top[2], bottom[2], value[2];
  for (int64_t r = 0; r < count; ++r) {
    if (Part) {
      LoadPairPart(rows + r * dim, width, &value[0], &value[1]);
    } else {
      LoadPair(rows + r * dim, &value[0], &value[1]);
    }
    for (int i = 0; i < 2; ++i) {
      top[i] = r == 0 ? value[i] : WiderOf(top[i], value[i]);
      bottom[i] = r == 0 ? -value[i] : WiderOf(bottom[i], -value[i]);
    }
  }
  if (Part) {
    StorePairPart(largest, width, top[0], top[1]);
    StorePairPart(smallest, width, -bottom[0], -bottom[1]);
  } else {
    StorePair(largest, top[0], top[1]);
    StorePair(smallest, -bottom[0], -bottom[1]);
  }
}

template <class T>
void Bounds(const char* rows, int64_t count, int dim, char* largest, char* smallest) {
  const T* from = reinterpret_cast<const T*>(rows);
  T* top = reinterpret_cast<T*>(largest);
  T* bottom = reinterpret_cast<T*>(smallest);
  int d = 0;
  for (; d + kPair <= dim; d += kPair) BoundsBlock<T, false>(from + d, count, dim, kPair, top + d, bottom + d);
  if (d < dim) BoundsBlock<T, true>(from + d, count, dim, dim - d, top + d, bottom + d);
}

template <class T, int D>
constexpr Tile MakeTile() {
  return Tile{Prepare<T>,    PrepareSigned<T>, Dots<T, D>,   ScoreDots<T, D>, ScoreExactly<T>,
              Accumulate<T, D>, Finish<T>,     Bounds<T>};
}

template <class T>
const Tile& PickTile(int64_t dim) {
  static constexpr Tile any = MakeTile<T, 0>(), d64 = MakeTile<T, 64>(), d96 = MakeTile<T, 96>(),
                        d128 = MakeTile<T, 128>(), d256 = MakeTile<T, 256>();
  switch (dim) {
    case 64:
      return d64;
    case 96:
      return d96;
    case 128:
      return d128;
    case 256:
      return d256;
    default:
      return any;
  }
}

}  // namespace
}  // namespace questbench
