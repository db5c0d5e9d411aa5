// The AVX-512 instructions that the CPU kernels use, in plain C++: tests run the kernels' code for AVX-512 with bf16
// products on processors that have neither. What an instruction computes is what Intel's manual says; speed counts nothing.
//
// Included before any other file. Intrinsics that the kernels name become functions of the same meaning, and the kernels are
// told that the instructions are there. An intrinsic that is missing here does not compile.
#pragma once

#include <immintrin.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#error "this compiler targets AVX-512: nothing is to be emulated"
#endif

namespace questbench::avx512 {

#define QB_EMULATED __attribute__((noinline)) inline  // it compiles in a third of the time

template <typename E, typename Vector>
using LanesOf = std::array<E, sizeof(Vector) / sizeof(E)>;

template <typename To, typename From>
QB_EMULATED To bits(const From& x) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &x, sizeof out);
  return out;
}
// The elements of a register, and a register of these elements.
template <typename E, typename Vector>
QB_EMULATED LanesOf<E, Vector> lanes(const Vector& x) {
  return bits<LanesOf<E, Vector>>(x);
}
// What `f` makes of each lane's number, as a register.
template <typename Vector, typename E, typename F>
QB_EMULATED Vector each(F f) {
  LanesOf<E, Vector> out;
  for (size_t i = 0; i < out.size(); ++i) out[i] = f(i);
  return bits<Vector>(out);
}

template <typename Vector>
QB_EMULATED Vector load(const void* p) {
  Vector out;
  std::memcpy(&out, p, sizeof out);
  return out;
}
QB_EMULATED void store(void* p, __m512 x) { std::memcpy(p, &x, sizeof x); }
QB_EMULATED __m512i load_words(__mmask32 mask, const void* p) {
  return each<__m512i, uint16_t>([&](size_t i) {
    uint16_t word = 0;
    if (mask >> i & 1) std::memcpy(&word, static_cast<const char*>(p) + 2 * i, sizeof word);  // else nothing is read
    return word;
  });
}
QB_EMULATED void store_ints(void* p, __mmask16 mask, __m512i x) {
  const auto values = lanes<int32_t>(x);
  for (size_t i = 0; i < values.size(); ++i)
    if (mask >> i & 1) std::memcpy(static_cast<char*>(p) + 4 * i, &values[i], 4);
}

QB_EMULATED __m512i splat(int x) {
  return each<__m512i, int32_t>([&](size_t) { return x; });
}
template <typename... X>
QB_EMULATED __m512i ints(X... x) {
  return bits<__m512i>(std::array<int32_t, 16>{x...});
}
QB_EMULATED __m512 add_floats(__m512 a, __m512 b) {
  const auto x = lanes<float>(a), y = lanes<float>(b);
  return each<__m512, float>([&](size_t i) { return x[i] + y[i]; });
}
QB_EMULATED __m512i add_ints(__m512i a, __m512i b) {
  const auto x = lanes<uint32_t>(a), y = lanes<uint32_t>(b);
  return each<__m512i, uint32_t>([&](size_t i) { return x[i] + y[i]; });
}
QB_EMULATED __mmask16 at_least(__m512i a, __m512i b) {
  const auto x = lanes<uint32_t>(a), y = lanes<uint32_t>(b);
  unsigned mask = 0;
  for (size_t i = 0; i < x.size(); ++i) mask |= static_cast<unsigned>(x[i] >= y[i]) << i;
  return static_cast<__mmask16>(mask);
}

// The lanes of `mask`, moved together to the front; zeros behind them.
QB_EMULATED __m512i compress(__mmask16 mask, __m512i x) {
  const auto values = lanes<int32_t>(x);
  std::array<int32_t, 16> out{};
  for (size_t i = 0, next = 0; i < values.size(); ++i)
    if (mask >> i & 1) out[next++] = values[i];
  return bits<__m512i>(out);
}
// The lower or upper halves of every 128 bits of a and b, element by element in turn.
template <typename E, bool kUpper, typename Vector>
QB_EMULATED Vector unpack(Vector a, Vector b) {
  constexpr size_t kEach = 16 / sizeof(E);
  const auto x = lanes<E>(a), y = lanes<E>(b);
  return each<Vector, E>([&](size_t i) {
    const size_t from = i / kEach * kEach + i % kEach / 2 + (kUpper ? kEach / 2 : 0);
    return i % 2 == 0 ? x[from] : y[from];
  });
}
// Two of four 128-bit parts of a, then two of b; two bits of `which` name each.
QB_EMULATED __m512 shuffle_parts(__m512 a, __m512 b, int which) {
  const auto x = lanes<float>(a), y = lanes<float>(b);
  return each<__m512, float>([&](size_t i) {
    const size_t part = i / 4, from = (which >> 2 * part & 3) * 4 + i % 4;
    return part < 2 ? x[from] : y[from];
  });
}

QB_EMULATED __m512 floats_of_ints(__m512i x) {
  const auto values = lanes<int32_t>(x);
  return each<__m512, float>([&](size_t i) { return static_cast<float>(values[i]); });
}
QB_EMULATED __m512i ints_of_bytes(__m128i x) {
  const auto values = lanes<uint8_t>(x);
  return each<__m512i, int32_t>([&](size_t i) { return static_cast<int32_t>(values[i]); });
}
QB_EMULATED __m512 floats_of_halves(__m256i x) {
  const auto halves = lanes<uint16_t>(x);
  return each<__m512, float>([&](size_t i) { return _cvtsh_ss(halves[i]); });
}

// A subnormal number counts as a zero of its sign, as operand and as result of bf16 instructions.
QB_EMULATED float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
QB_EMULATED float wide(uint16_t x) { return flushed(bits<float>(static_cast<uint32_t>(x) << 16)); }
QB_EMULATED uint16_t rounded(float x) {
  const uint32_t word = bits<uint32_t>(flushed(x));
  if (x != x) return static_cast<uint16_t>(word >> 16 | 0x40);
  return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1)) >> 16);
}
QB_EMULATED __m256bh rounded_floats(__m512 x) {
  const auto values = lanes<float>(x);
  return each<__m256bh, uint16_t>([&](size_t i) { return rounded(values[i]); });
}
// sum + the products of two pairs, the odd ones first; a product of two bf16 numbers is exact in fp32.
QB_EMULATED __m512 add_pairs(__m512 sum, __m512bh a, __m512bh b) {
  const auto from = lanes<float>(sum);
  const auto x = lanes<uint16_t>(a), y = lanes<uint16_t>(b);
  return each<__m512, float>([&](size_t i) {
    const float first = flushed(std::fma(wide(x[2 * i + 1]), wide(y[2 * i + 1]), flushed(from[i])));
    return flushed(std::fma(wide(x[2 * i]), wide(y[2 * i]), first));
  });
}

}  // namespace questbench::avx512

// Without optimisation some are macros already.
#undef _mm512_setr_epi32
#undef _mm512_cmpge_epu32_mask
#undef _mm512_shuffle_f32x4

#define _mm512_loadu_ps questbench::avx512::load<__m512>
#define _mm512_loadu_si512 questbench::avx512::load<__m512i>
#define _mm512_storeu_ps questbench::avx512::store
#define _mm512_maskz_loadu_epi16 questbench::avx512::load_words
#define _mm512_mask_storeu_epi32 questbench::avx512::store_ints
#define _mm512_setzero_ps() __m512{}
#define _mm512_setzero_si512() __m512i{}
#define _mm512_set1_epi32 questbench::avx512::splat
#define _mm512_setr_epi32 questbench::avx512::ints
#define _mm512_add_ps questbench::avx512::add_floats
#define _mm512_add_epi32 questbench::avx512::add_ints
#define _mm512_cmpge_epu32_mask questbench::avx512::at_least
#define _mm512_maskz_compress_epi32 questbench::avx512::compress
#define _mm512_unpacklo_ps questbench::avx512::unpack<float, false>
#define _mm512_unpackhi_ps questbench::avx512::unpack<float, true>
#define _mm512_unpacklo_pd questbench::avx512::unpack<double, false>
#define _mm512_unpackhi_pd questbench::avx512::unpack<double, true>
#define _mm512_unpacklo_epi16 questbench::avx512::unpack<uint16_t, false>
#define _mm512_unpackhi_epi16 questbench::avx512::unpack<uint16_t, true>
#define _mm512_shuffle_f32x4 questbench::avx512::shuffle_parts
#define _mm512_castps_pd questbench::avx512::bits<__m512d>
#define _mm512_castpd_ps questbench::avx512::bits<__m512>
#define _mm512_cvtepi32_ps questbench::avx512::floats_of_ints
#define _mm512_cvtepu8_epi32 questbench::avx512::ints_of_bytes
#define _mm512_cvtph_ps questbench::avx512::floats_of_halves
#define _mm512_cvtneps_pbh questbench::avx512::rounded_floats
#define _mm512_dpbf16_ps questbench::avx512::add_pairs

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512BF16__ 1
