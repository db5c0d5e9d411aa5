// 16 floats, or 32-bit integers, as one value: in one register where registers are that wide, else in as many as it takes.
//
// GCC would take a vector that is wider than the registers too, but keeps it in memory and passes it through general
// registers from one operation to the next: sums then cost ten times their arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

namespace questbench {

constexpr int kLanes = 16;

#if defined(__AVX512F__)
#define QB_INLINE inline

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));

QB_INLINE Vec splat(float x) { return x - Vec{}; }
QB_INLINE IntVec splat(int32_t x) { return IntVec{} + x; }
QB_INLINE Vec floats_of(IntVec x) { return __builtin_convertvector(x, Vec); }
QB_INLINE IntVec ints_of(Vec x) { return __builtin_convertvector(x, IntVec); }
QB_INLINE void set_lane(Vec& x, int64_t i, float value) { x[i] = value; }

// mask ? a : b by lanes; a macro, so that the comparison stays one of masks.
#define QB_CHOOSE(mask, a, b) ((mask) ? (a) : (b))

#else
#define QB_INLINE __attribute__((always_inline)) inline

#if defined(__AVX__)
constexpr int kPartLanes = 8;
#else
constexpr int kPartLanes = 4;
#endif
constexpr int kVecParts = kLanes / kPartLanes;

template <typename E>
struct PartOf {
  typedef E type __attribute__((vector_size(kPartLanes * sizeof(E))));
};

template <typename E>
struct Lanes {
  typename PartOf<E>::type part[kVecParts];

  QB_INLINE E operator[](int64_t i) const { return part[i / kPartLanes][i % kPartLanes]; }
  // The same bits.
  template <typename To>
  QB_INLINE explicit operator Lanes<To>() const {
    Lanes<To> out;
#pragma GCC unroll 4
    for (int i = 0; i < kVecParts; ++i) out.part[i] = (typename PartOf<To>::type)part[i];
    return out;
  }
};
typedef Lanes<float> Vec;
typedef Lanes<int32_t> IntVec;

// What `f` makes of each part.
template <typename To, typename F>
QB_INLINE Lanes<To> each_part(F f) {
  Lanes<To> out;
#pragma GCC unroll 4
  for (int i = 0; i < kVecParts; ++i) out.part[i] = f(i);
  return out;
}

#define QB_OPERATOR(op, Result)                                                          \
  template <typename E>                                                                  \
  QB_INLINE Lanes<Result> operator op(const Lanes<E>& a, const Lanes<E>& b) {            \
    return each_part<Result>([&](int i) QB_PART { return a.part[i] op b.part[i]; });     \
  }
#define QB_PART __attribute__((always_inline))
QB_OPERATOR(+, E)
QB_OPERATOR(-, E)
QB_OPERATOR(*, E)
QB_OPERATOR(/, E)
QB_OPERATOR(&, E)
QB_OPERATOR(|, E)
QB_OPERATOR(<, int32_t)
QB_OPERATOR(>, int32_t)
QB_OPERATOR(==, int32_t)
QB_OPERATOR(!=, int32_t)
#undef QB_OPERATOR

QB_INLINE Vec operator-(const Vec& a) {
  return each_part<float>([&](int i) QB_PART { return -a.part[i]; });
}
template <typename E>
QB_INLINE Lanes<E>& operator+=(Lanes<E>& a, const Lanes<E>& b) {
  return a = a + b;
}
template <typename E>
QB_INLINE Lanes<E>& operator-=(Lanes<E>& a, const Lanes<E>& b) {
  return a = a - b;
}
QB_INLINE IntVec operator<<(const IntVec& a, int bits) {
  return each_part<int32_t>([&](int i) QB_PART { return a.part[i] << bits; });
}
QB_INLINE IntVec operator>>(const IntVec& a, int bits) {
  return each_part<int32_t>([&](int i) QB_PART { return a.part[i] >> bits; });
}

QB_INLINE Vec splat(float x) {
  return each_part<float>([&](int) QB_PART { return x - PartOf<float>::type{}; });
}
QB_INLINE IntVec splat(int32_t x) {
  return each_part<int32_t>([&](int) QB_PART { return PartOf<int32_t>::type{} + x; });
}
QB_INLINE Vec floats_of(const IntVec& x) {
  return each_part<float>([&](int i) QB_PART { return __builtin_convertvector(x.part[i], PartOf<float>::type); });
}
QB_INLINE IntVec ints_of(const Vec& x) {
  return each_part<int32_t>([&](int i) QB_PART { return __builtin_convertvector(x.part[i], PartOf<int32_t>::type); });
}
QB_INLINE void set_lane(Vec& x, int64_t i, float value) { x.part[i / kPartLanes][i % kPartLanes] = value; }

template <typename E>
QB_INLINE Lanes<E> choose(const IntVec& mask, const Lanes<E>& a, const Lanes<E>& b) {
  return each_part<E>([&](int i) QB_PART { return mask.part[i] ? a.part[i] : b.part[i]; });
}
#define QB_CHOOSE(mask, a, b) choose(mask, a, b)

#endif

}  // namespace questbench
