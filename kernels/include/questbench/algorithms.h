// Plain algorithms that the CUDA kernels are made of, the same on the host: unit tests run them without a device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "questbench/host_device.h"

namespace qb {

// Scores as keys that compare like them: larger is better, NaN first, +0 and -0 alike.
QB_HOST_DEVICE unsigned order_key(float score) {
  if (score != score) return 0xffffffffu;
  score += 0.0f;  // -0 becomes +0
  unsigned bits;
  memcpy(&bits, &score, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Entries of a list of `count` ascending pages of a row: only the last page can be partly filled.
QB_HOST_DEVICE int64_t listed_entries(const int32_t* pages, int64_t count, int64_t length, int64_t page_size) {
  if (count <= 0) return 0;
  const int64_t left = length - pages[count - 1] * page_size;
  return (count - 1) * page_size + (left < page_size ? left : page_size);
}

// Attention mass in whole numbers, whose sums do not depend on an order: rint(2^30 * share).
constexpr float kWholeMass = 1 << 30;
constexpr unsigned kUndefinedMass = 1u << 31;  // above all of them: the mass of a logit that is NaN or +inf

// What the mass of the entries that are taken must reach: a share `p` of `total`, and something unless there is nothing.
QB_HOST_DEVICE unsigned mass_target(double p, unsigned total) {
  const double share = ceil(p * total), least = total > 0 ? 1 : 0;
  return unsigned(share < least ? least : share > total ? total : share);
}

// How many of the entries that weigh exactly `least` complete `above`, the mass of the heavier ones.
QB_HOST_DEVICE int64_t mass_equals(unsigned target, unsigned above, unsigned least) {
  return (int64_t{target} - above + least - 1) / least;
}

// Number of the first entry of a page's tile of one KV head, counted over the pool. 64 bits: times the head dim it
// passes 2^32 in pools of a few gigabytes.
QB_HOST_DEVICE int64_t first_entry(int64_t physical_page, int kv_heads, int head, int page_shift) {
  return (physical_page * kv_heads + head) << page_shift;
}

// Tiles [share_begin(split), share_begin(split + 1)) are a split's: all of them, each once, shares one tile apart at most.
QB_HOST_DEVICE int share_begin(int64_t tiles, int split, int splits) { return int(tiles * split / splits); }

// Softmax of a part of the entries: largest logit (in powers of two), sum of weights relative to it, and one channel of
// the values weighed by them.
struct Part {
  float top, total, value;
};

// What the values of a part weigh beside a greatest logit `base`; -1 for a part without entries (-inf and no weight),
// which counts nothing, whatever its value says.
QB_HOST_DEVICE float part_weight(float top, float total, float base) {
  return top == -INFINITY && total == 0 ? -1.0f : exp2f(top - base);
}

// Parts together, in order, beside a sink logit without a value (-inf: none). Entries of -inf alone weigh
// nothing.
template <class F>
QB_HOST_DEVICE Part merge(int count, float sink, const F& part) {
  float top = sink;
  for (int i = 0; i < count; ++i) top = fmaxf(top, part(i).top);
  const float base = top == -INFINITY ? 0.0f : top;
  float total = exp2f(sink - base), value = 0;
  for (int i = 0; i < count; ++i) {
    const Part one = part(i);
    const float share = part_weight(one.top, one.total, base);
    if (share < 0) continue;
    total += share * one.total;
    value += share * one.value;
  }
  return {top, total, value};
}

}  // namespace qb
