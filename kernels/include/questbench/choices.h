// What is chosen for each machine by measurement (questbench/kernels/_tune.py): ways to the same results, of which one
// machine has one faster and another machine another one.
#pragma once

#include <cstdint>

namespace questbench {

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(__AVX512F__)
constexpr bool kBlocks = true;  // there are register blocks: see blocks.h
#else
constexpr bool kBlocks = false;
#endif

// Kinds of attention with a choice each: everything is read or a list, by one query head or by several at once.
constexpr int kKinds = 4;
constexpr int kind_of(bool listed, bool several) { return 2 * listed + several; }

struct Choice {
  // Neighbouring KV heads are read as one stream where everything is read, else one head after the other.
  bool together = kBlocks;
  // Tiles between the one in work and the one that is fetched; 0 leaves that to the hardware.
  int64_t ahead = 4;
  // Cache that register blocks fetch into, 1 or 2.
  int level = 1;
  // Queries of a register block of products, and heads of a register block of values: 4, 2 or 1.
  int queries = 4, heads = 4;
  // Whether bf16 products weigh the values of several heads, where there are such products; else fp32.
  bool pairs = true;
};

// One query head per KV head waits for memory, and wants the next tile alone; see docs/kernels.md for what was measured.
constexpr Choice default_choice(int kind) {
  Choice out;
  out.ahead = kind % 2 == 0 ? 1 : 4;
  return out;
}

// Read once per call. Set by the binding alone, between calls.
inline Choice chosen[kKinds] = {default_choice(0), default_choice(1), default_choice(2), default_choice(3)};

}  // namespace questbench
