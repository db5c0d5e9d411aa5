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
constexpr float kCodeMost = 15.0f;
typedef uint8_t CodeBits __attribute__((vector_size(16)));

inline int64_t code_blocks(int64_t head_dim) { return (head_dim + kCodeChannels - 1) / kCodeChannels; }
inline int64_t code_bytes(int64_t head_dim) { return code_blocks(head_dim) * kCodeChannels / 2; }

// `row` has room for whole blocks of channels.
template <typename T>
void quantize_entry(const T* key, int64_t head_dim, float* row, uint8_t* codes, float* range) {
  int64_t at = 0;
  for (; at + kLanes <= head_dim; at += kLanes) store(row + at, load(key + at));
  for (; at < head_dim; ++at) row[at] = to_float(key[at]);
  float low = row[0], high = row[0], undefined = 0;
  for (int64_t d = 0; d < head_dim; ++d) {
    low = row[d] < low ? row[d] : low;
    high = row[d] > high ? row[d] : high;
    undefined += row[d] - row[d];  // NaN for NaN and infinities
  }
  const int64_t blocks = code_blocks(head_dim);
  const float step = (high - low) / kCodeMost;
  if (undefined != 0 || !(step - step == 0)) {
    range[0] = range[1] = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(codes, blocks * kCodeChannels / 2, uint8_t{0});
    return;
  }
  range[0] = step, range[1] = low;
  std::fill(row + head_dim, row + blocks * kCodeChannels, low);
  const float by = step > 0 ? step : 1.0f, round = 12582912.0f;  // adding it rounds to a whole number, half to even
  for (int64_t block = 0; block < blocks; ++block) {
    const float* part = row + block * kCodeChannels;
    for (int i = 0; i < 16; ++i) {
      const float a = std::min((part[i] - low) / by + round, round + kCodeMost) - round;
      const float b = std::min((part[16 + i] - low) / by + round, round + kCodeMost) - round;
      codes[block * 16 + i] = static_cast<uint8_t>(static_cast<int>(a) | static_cast<int>(b) << 4);
    }
  }
}

// The codes of one entry as floats, whole blocks of channels.
__attribute__((always_inline)) inline void widen_codes(const uint8_t* codes, int64_t blocks, float* out) {
  for (int64_t block = 0; block < blocks; ++block) {
    CodeBits both;
    std::memcpy(&both, codes + block * 16, sizeof both);
    store(out + block * kCodeChannels, __builtin_convertvector(__builtin_convertvector(both & 15, IntVec), Vec));
    store(out + block * kCodeChannels + 16, __builtin_convertvector(__builtin_convertvector(both >> 4, IntVec), Vec));
  }
}

}  // namespace questbench
