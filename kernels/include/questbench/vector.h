// 16 floats at a time on whatever the compiler targets: GCC vector extensions lower to AVX-512, AVX2, SSE or NEON.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "questbench/lanes.h"

namespace questbench {

#if defined(__AVX512F__)
constexpr bool kManyRegisters = true;  // 32 vectors
#else
constexpr bool kManyRegisters = false;
#endif
constexpr int kMaxGroup = 256;  // query heads per KV head

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}
inline float to_float(fp16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31, fraction = x.bits & 1023;
  uint32_t wide;
  if (exponent == 31) {
    wide = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent != 0) {
    wide = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {  // zero and subnormals: fraction * 2^-24
    float small = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    std::memcpy(&wide, &small, 4);
    wide |= sign;
  }
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

inline void from_float(float x, float* out) { *out = x; }
inline void from_float(float x, bf16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40);  // a quiet NaN stays one
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
inline void from_float(float x, fp16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out->bits = static_cast<uint16_t>(sign | 0x7e00u);
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    out->bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns the fraction, the hardware rounds to even
    float value, magic = 0.5f;
    std::memcpy(&value, &magnitude, 4);
    value += magic;
    uint32_t aligned;
    std::memcpy(&aligned, &value, 4);
    out->bits = static_cast<uint16_t>(sign | (aligned - 0x3f000000u));
  } else {
    const uint32_t odd = (magnitude >> 13) & 1;
    out->bits = static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
  }
}

__attribute__((always_inline)) inline Vec load(const float* p) {
  Vec out;
  std::memcpy(&out, p, sizeof out);
  return out;
}
__attribute__((always_inline)) inline Vec load(const bf16* p) {
#if defined(__AVX512F__)
  typedef uint16_t HalfBits __attribute__((vector_size(32)));
  HalfBits half;
  std::memcpy(&half, p, sizeof half);
  IntVec wide = __builtin_convertvector(half, IntVec) << 16;
  return (Vec)wide;
#else
  return (Vec)each_part<int32_t>([&](int i) QB_PART {
    typedef uint16_t HalfBits __attribute__((vector_size(2 * kPartLanes)));
    HalfBits half;
    std::memcpy(&half, p + i * kPartLanes, sizeof half);
    return __builtin_convertvector(half, PartOf<int32_t>::type) << 16;
  });
#endif
}
__attribute__((always_inline)) inline Vec load(const fp16* p) {
#if defined(__AVX512F__)
  __m256i half;
  std::memcpy(&half, p, sizeof half);
  return (Vec)_mm512_cvtph_ps(half);
#elif defined(__F16C__)
  return each_part<float>([&](int i) QB_PART {
    __m128i half;
    std::memcpy(&half, p + kPartLanes * i, sizeof half);
    return (PartOf<float>::type)_mm256_cvtph_ps(half);
  });
#else
  Vec out;
  for (int i = 0; i < kLanes; ++i) set_lane(out, i, to_float(p[i]));
  return out;
#endif
}

// 32 elements as two vectors, in the order that is cheapest: `untangle` puts sums of such pairs back in place.
template <typename T>
__attribute__((always_inline)) inline void load_pair(const T* p, Vec* a, Vec* b) {
  *a = load(p);
  *b = load(p + kLanes);
}
__attribute__((always_inline)) inline void load_pair(const bf16* p, Vec* a, Vec* b) {
  IntVec both;
  std::memcpy(&both, p, sizeof both);
  IntVec even = both << 16, odd = both & splat(static_cast<int32_t>(0xffff0000u));
  *a = (Vec)even;
  *b = (Vec)odd;
}
template <typename T>
inline void untangle(const T*, float*) {}
inline void untangle(const bf16*, float* p) {
  float mixed[2 * kLanes];
  std::memcpy(mixed, p, sizeof mixed);
  for (int i = 0; i < kLanes; ++i) {
    p[2 * i] = mixed[i];
    p[2 * i + 1] = mixed[kLanes + i];
  }
}

// -1 in the last n % kLanes lanes, 0 in the others.
inline IntVec tail_lanes(int64_t n) {
  static const int32_t lanes[2 * kLanes] = {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
                                            -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  IntVec out;
  std::memcpy(&out, lanes + n % kLanes, sizeof out);
  return out;
}

// What whole vectors leave of a row of n >= kLanes elements, in the last lanes of one more vector; zeros in the others.
// It begins inside the row, so that nothing is read behind its end.
template <typename T>
__attribute__((always_inline)) inline Vec load_tail(const T* row, int64_t n) {
  return (Vec)((IntVec)load(row + n - kLanes) & tail_lanes(n));
}

QB_INLINE void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }

QB_INLINE Vec max_of(Vec a, Vec b) { return QB_CHOOSE(a > b, a, b); }

inline float sum_of(Vec x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
inline float max_of(Vec x) {
  float best = x[0];
  for (int i = 1; i < kLanes; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

inline bool any_nan(Vec x) {
  const IntVec bad = x != x;
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= bad[i];
  return any != 0;
}

// exp(x) for x <= 0 to about one unit in the last place; exact 0 below -87, NaN stays NaN.
QB_INLINE Vec exp_of(Vec x) {
  const Vec log2e = splat(1.44269504088896341f), round = splat(12582912.0f);
  const IntVec tiny = x < splat(-87.0f);
  Vec safe = QB_CHOOSE(tiny, splat(-87.0f), x);
  Vec n = safe * log2e + round;
  const IntVec power = (IntVec)n << 23;  // the low bits of n hold the integer
  n -= round;
  Vec r = safe - n * splat(0.693145751953125f);
  r -= n * splat(1.42860682030941723e-6f);
  Vec p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  Vec out = (Vec)((IntVec)p + power);
  out = QB_CHOOSE(tiny, splat(0.0f), out);
  return QB_CHOOSE(x != x, x, out);
}

// log(x) for normal x > 0, to about one unit in the last place; NaN stays NaN.
QB_INLINE Vec log_of(Vec x) {
  const IntVec bits = (IntVec)x;
  // x = 2^n m with m in [sqrt(1/2), sqrt(2))
  const IntVec power = (bits - splat(int32_t{0x3f3504f3})) >> 23;
  const Vec m = (Vec)(bits - (power << 23)) - splat(1.0f), n = floats_of(power);
  Vec p = splat(7.0376836292e-2f);
  p = p * m + splat(-1.1514610310e-1f);
  p = p * m + splat(1.1676998740e-1f);
  p = p * m + splat(-1.2420140846e-1f);
  p = p * m + splat(1.4249322787e-1f);
  p = p * m + splat(-1.6668057665e-1f);
  p = p * m + splat(2.0000714765e-1f);
  p = p * m + splat(-2.4999993993e-1f);
  p = p * m + splat(3.3333331174e-1f);
  const Vec square = m * m;
  Vec out = m * square * p + n * splat(-2.12194440e-4f) - splat(0.5f) * square + m + n * splat(0.693359375f);
  return QB_CHOOSE(x != x, x, out);
}

// Sums of 16 vectors at once: lane i of the result is the sum over the lanes of rows[i].
__attribute__((always_inline)) inline Vec sums_of(const Vec* rows) {
#if defined(__AVX512F__)
  __m512 a[16];
  for (int i = 0; i < 8; ++i) {
    __m512 x = (__m512)rows[2 * i], y = (__m512)rows[2 * i + 1];
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
  }
  for (int i = 0; i < 4; ++i) {
    __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    a[8 + i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(a[8], a[9], 0x88), _mm512_shuffle_f32x4(a[8], a[9], 0xdd));
  __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(a[10], a[11], 0x88), _mm512_shuffle_f32x4(a[10], a[11], 0xdd));
  return (Vec)_mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
#else
  Vec out;
  for (int i = 0; i < kLanes; ++i) set_lane(out, i, sum_of(rows[i]));
  return out;
#endif
}

// Fetches ahead into the cache of a level, 1 or 2. Spread such calls over the work: some processors drop fetches that
// come faster than misses can be tracked.
template <int kLevel = 1>
__attribute__((always_inline)) inline void prefetch_row(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, kLevel == 1 ? 3 : 2);
}

}  // namespace questbench
