// One vector type for all machines: AVX-512, AVX2 with FMA and F16C, or the compiler's portable vectors.
//
// Storage is read in blocks of 2 * kLanes elements as a pair of fp32 vectors (LoadPair) and written back the same
// way (StorePair). The order of elements inside a pair is private to the storage type: bf16 splits into even and odd
// elements (one shift and one mask instead of shuffles). Code that never mixes lanes does not see the difference.
#pragma once

#include <cstdint>
#include <cstring>

#include "questbench/types.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define QB_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define QB_AVX2 1
#include <immintrin.h>
#endif

#define QB_INLINE inline __attribute__((always_inline))

namespace questbench {

#if defined(QB_AVX512)
constexpr int kLanes = 16;
using F = __m512;
#elif defined(QB_AVX2)
constexpr int kLanes = 8;
using F = __m256;
#else
constexpr int kLanes = 4;
typedef float F __attribute__((vector_size(16), may_alias));
#endif

constexpr int kPair = 2 * kLanes;
typedef int32_t I __attribute__((vector_size(4 * kLanes), may_alias));
typedef uint32_t U __attribute__((vector_size(4 * kLanes), may_alias));

QB_INLINE F Splat(float value) { return value - F{}; }
QB_INLINE I SplatInt(int32_t value) { return value - I{}; }
QB_INLINE U SplatBits(uint32_t value) { return value - U{}; }

QB_INLINE F Load(const float* from) {
  F value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
QB_INLINE void Store(float* to, F value) { std::memcpy(to, &value, sizeof(value)); }

QB_INLINE F Fma(F a, F b, F c) {
#if defined(QB_AVX512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(QB_AVX2)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// The greater of the two; b where a is NaN.
QB_INLINE F Greater(F a, F b) { return a > b ? a : b; }

QB_INLINE float Sum(F value) {
  float lanes[kLanes];
  Store(lanes, value);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

QB_INLINE float Largest(F value) {
  float lanes[kLanes];
  Store(lanes, value);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

// ---- fp16 and bf16, one element at a time ----

inline float ToFloat(float value) { return value; }
inline float ToFloat(BFloat16 value) { return BitCast<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float ToFloat(Half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  // The exponent is biased by 112 less than fp32's; a product corrects it for normal and subnormal numbers alike.
  uint32_t bits = BitCast<uint32_t>(BitCast<float>(magnitude) * 0x1p112f);
  if (magnitude >= 0x0f800000u) bits |= 0x7f800000u;  // infinity and NaN
  return BitCast<float>(bits | static_cast<uint32_t>(value.bits & 0x8000) << 16);
}

// Round to nearest, ties to even.
inline void FromFloat(float value, float* to) { *to = value; }
inline void FromFloat(float value, BFloat16* to) {
  const uint32_t bits = BitCast<uint32_t>(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline void FromFloat(float value, Half* to) {
  const uint32_t bits = BitCast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more rounds to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at the last bit of a half
    half = BitCast<uint32_t>(BitCast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

// ---- Pairs: 2 * kLanes elements of storage as two fp32 vectors ----

QB_INLINE void LoadPair(const float* from, F* low, F* high) {
  *low = Load(from);
  *high = Load(from + kLanes);
}
QB_INLINE void StorePair(float* to, F low, F high) {
  Store(to, low);
  Store(to + kLanes, high);
}

QB_INLINE void LoadPair(const BFloat16* from, F* even, F* odd) {
  U both;
  std::memcpy(&both, from, sizeof(both));
  *even = (F)(both << 16);
  *odd = (F)(both & SplatBits(0xffff0000u));
}
QB_INLINE U RoundToBFloat16(F value) {
  const U bits = (U)value;
  const U rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  return value == value ? rounded : (bits | SplatBits(0x400000u));
}
QB_INLINE void StorePair(BFloat16* to, F even, F odd) {
  const U both = RoundToBFloat16(even) >> 16 | (RoundToBFloat16(odd) & SplatBits(0xffff0000u));
  std::memcpy(to, &both, sizeof(both));
}

QB_INLINE F LoadHalves(const Half* from) {
#if defined(QB_AVX512)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(QB_AVX2)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  F value;
  for (int i = 0; i < kLanes; ++i) value[i] = ToFloat(from[i]);
  return value;
#endif
}
QB_INLINE void StoreHalves(Half* to, F value) {
#if defined(QB_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(QB_AVX2)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) FromFloat(value[i], to + i);
#endif
}
QB_INLINE void LoadPair(const Half* from, F* low, F* high) {
  *low = LoadHalves(from);
  *high = LoadHalves(from + kLanes);
}
QB_INLINE void StorePair(Half* to, F low, F high) {
  StoreHalves(to, low);
  StoreHalves(to + kLanes, high);
}

// The first `count` < 2 * kLanes elements; zeros beyond.
template <class T>
QB_INLINE void LoadPairPart(const T* from, int count, F* low, F* high) {
  T padded[kPair];
  std::memset(padded, 0, sizeof(padded));
  std::memcpy(padded, from, count * sizeof(T));
  LoadPair(padded, low, high);
}
template <class T>
QB_INLINE void StorePairPart(T* to, int count, F low, F high) {
  T padded[kPair];
  StorePair(padded, low, high);
  std::memcpy(to, padded, count * sizeof(T));
}

// ---- Functions ----

// e^x for x <= 88 to about one unit in the last place, with gradual underflow; NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r is its Taylor polynomial of degree 7 (next term: 5e-9).
QB_INLINE F Exp(F x) {
  x = x < Splat(-104.0f) ? Splat(-104.0f) : x;
  const F magic = Splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const F shifted = Fma(x, Splat(1.44269504f), magic);
  const F n = shifted - magic;
  F r = Fma(n, Splat(-0.693359375f), x);  // ln 2 in two parts, the first exact in few bits
  r = Fma(n, Splat(2.12194440e-4f), r);
  F p = Splat(1.0f / 5040);
  p = Fma(p, r, Splat(1.0f / 720));
  p = Fma(p, r, Splat(1.0f / 120));
  p = Fma(p, r, Splat(1.0f / 24));
  p = Fma(p, r, Splat(1.0f / 6));
  p = Fma(p, r, Splat(0.5f));
  p = Fma(p, r, Splat(1.0f));
  p = Fma(p, r, Splat(1.0f));
#if defined(QB_AVX512)
  return _mm512_scalef_ps(p, n);
#else
  // Two factors, because 2^n alone may be below the smallest normal number.
  const I power = (I)shifted - (I)magic;
  const I first = power >> 1;
  const I second = power - first;
  return p * (F)((first + 127) << 23) * (F)((second + 127) << 23);
#endif
}

// tanh x: an odd polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel.
QB_INLINE F Tanh(F x) {
  const F size = x < 0.0f ? -x : x;
  const F clamped = size > Splat(10.0f) ? Splat(10.0f) : size;
  const F far = 1.0f - 2.0f / (Exp(clamped + clamped) + 1.0f);
  // Taylor coefficients of tanh(x) / x in x^2; below 0.4 the first term left out is under 1e-7 of it.
  const F square = x * x;
  F p = Splat(-1382.0f / 155925);
  p = Fma(p, square, Splat(62.0f / 2835));
  p = Fma(p, square, Splat(-17.0f / 315));
  p = Fma(p, square, Splat(2.0f / 15));
  p = Fma(p, square, Splat(-1.0f / 3));
  p = Fma(p, square, Splat(1.0f));
  return size < Splat(0.4f) ? p * x : (x < 0.0f ? -far : far);
}

}  // namespace questbench
