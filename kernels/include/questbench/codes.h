// Keys in four bits per channel, per entry and KV head:
//   k[d] ~ low + step * code[d],   low = min_d k[d],   step = (max_d k[d] - low) / 15,   code[d] = rint((k[d] - low) / step)
//
// 32 channels are 16 bytes: byte i of them holds channel i in its low half and channel 16 + i in its high half, so that
// either half is 16 channels in order. Channels past the head dim are 0. An entry whose range is no finite number has a
// step and a low of NaN.
#pragma once

#include <algorithm>
#include <cmath>

#include "questbench/dots.h"

namespace questbench {

constexpr int64_t kCodeChannels = 32;
constexpr float kCodeMost = 15;
typedef uint8_t CodeBits __attribute__((vector_size(16)));

inline int64_t code_blocks(int64_t head_dim) { return (head_dim + kCodeChannels - 1) / kCodeChannels; }
inline int64_t code_bytes(int64_t head_dim) { return code_blocks(head_dim) * kCodeChannels / 2; }

// `row` has room for whole blocks of channels.
template <typename T>
void quantize_entry(const T* key, int64_t head_dim, float* row, uint8_t* codes, float* range) {
  const int64_t padded = code_blocks(head_dim) * kCodeChannels;
  int64_t at = 0;
  for (; at + kLanes <= head_dim; at += kLanes) store(row + at, load(key + at));
  for (; at < head_dim; ++at) row[at] = to_float(key[at]);
  std::fill(row + head_dim, row + padded, row[0]);
  Vec lows = load(row), highs = lows, undefined = {};
  for (int64_t d = 0; d < padded; d += kLanes) {
    const Vec x = load(row + d);
    lows = QB_CHOOSE(x < lows, x, lows), highs = max_of(x, highs);
    undefined += x - x;  // NaN for NaN and infinities
  }
  const float low = -max_of(-lows), step = (max_of(highs) - low) / kCodeMost;
  if (sum_of(undefined) != 0 || !(step - step == 0)) {
    range[0] = range[1] = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(codes, padded / 2, uint8_t{0});
    return;
  }
  range[0] = step, range[1] = low;
  std::fill(row + head_dim, row + padded, low);  // code 0
  const Vec by = splat(step > 0 ? step : 1.0f), least = splat(low), most = splat(kCodeMost);
  const auto code = [&](const float* part) {
    const Vec x = (load(part) - least) / by;
    const Vec rounded = QB_CHOOSE(x < most, x, most) + splat(12582912.0f);  // to a whole number, half to even, in the low bits
    return (IntVec)rounded & splat(int32_t{15});
  };
  for (int64_t block = 0; block < padded; block += kCodeChannels) {
    const IntVec both = code(row + block) | (code(row + block + kLanes) << 4);
    for (int i = 0; i < kLanes; ++i) codes[block / 2 + i] = static_cast<uint8_t>(both[i]);
  }
}

// 16 codes, one in each byte, as floats.
__attribute__((always_inline)) inline Vec widen_bytes(CodeBits bytes) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)bytes));
#elif defined(__AVX2__)
  const __m256 halves[2] = {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32((__m128i)bytes)),
                            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128((__m128i)bytes, 8)))};
  Vec out;
  std::memcpy(&out, halves, sizeof out);
  return out;
#else
  return each_part<float>([&](int i) QB_PART {
    PartOf<float>::type out;
    for (int c = 0; c < kPartLanes; ++c) out[c] = static_cast<float>(bytes[i * kPartLanes + c]);
    return out;
  });
#endif
}

// The codes of one entry as floats, whole blocks of channels.
__attribute__((always_inline)) inline void widen_codes(const uint8_t* codes, int64_t blocks, float* out) {
  for (int64_t block = 0; block < blocks; ++block) {
    CodeBits both;
    std::memcpy(&both, codes + block * 16, sizeof both);
    store(out + block * kCodeChannels, widen_bytes(both & 15));
    store(out + block * kCodeChannels + kLanes, widen_bytes(both >> 4));
  }
}

}  // namespace questbench
