// The smallest set of a list's entries that holds a share `p` of the attention mass, from their logits.
//
// An entry weighs w = rint(2^30 * mean over the heads of their softmax over the list). In whole numbers sums do not depend
// on an order, so the set is exact: entries by falling weight, the lower one first among equals, until the sum reaches
// ceil(p * total). An entry whose logit is NaN or +inf in any head is always taken and stays out of the sums.
#pragma once

#include <cmath>

#include "questbench/algorithms.h"
#include "questbench/select.h"

namespace questbench {

using qb::kUndefinedMass;

// Weights of n entries from the logits of `group` heads; `weights` has room for whole vectors.
inline void mass_weights(const float* logits, int64_t stride, int group, int64_t n, uint32_t* weights) {
  float log_totals[kMaxGroup];
  for (int g = 0; g < group; ++g) log_totals[g] = log_total(logits + g * stride, n, 1.0f);
  const Vec share = splat(qb::kWholeMass / static_cast<float>(group)), round = splat(8388608.0f);
  for (int64_t at = 0; at < n; at += kLanes) {
    Vec mass = {};
    for (int g = 0; g < group; ++g)
      mass += exp_of(known_scores(logits + g * stride, at, n, 1.0f) - splat(log_totals[g]));
    const IntVec defined = mass == mass;
    mass = QB_CHOOSE(defined, mass, Vec{}) * share;
    mass = QB_CHOOSE(mass < round, (mass + round) - round, mass);  // to whole numbers, which floats from 2^23 on are
    const IntVec whole = ints_of(mass);
    const IntVec weight = QB_CHOOSE(defined, whole, splat(static_cast<int32_t>(kUndefinedMass)));
    std::memcpy(weights + at, &weight, sizeof weight);
  }
}

// Writes the numbers of the chosen ones of n entries in ascending order and returns how many there are.
inline int64_t prune_entries(const uint32_t* weights, int64_t n, double p, int32_t* out) {
  const auto reached = [&](uint32_t least) {
    uint32_t sum = 0;
    for (int64_t at = 0; at < n; ++at) sum += weights[at] >= least ? weights[at] & (kUndefinedMass - 1) : 0;
    return sum;
  };
  const uint32_t total = reached(0), target = qb::mass_target(p, total);
  bool undefined = false;
  for (int64_t at = 0; at < n; ++at) undefined |= weights[at] == kUndefinedMass;
  // The greatest weight whose entries, with all above it, reach the target: bit by bit.
  uint32_t least = 0;
  for (int bit = 30; bit >= 0 && total > 0; --bit)
    if (reached(least | 1u << bit) >= target) least |= 1u << bit;
  int64_t equal = total > 0 ? qb::mass_equals(target, reached(least + 1), least) : (undefined ? 0 : 1);
  int64_t taken = 0;
  for (int64_t at = 0; at < n; ++at) {
    if (weights[at] < least || (weights[at] == least && equal-- <= 0)) continue;
    out[taken++] = static_cast<int32_t>(at);
  }
  return taken;
}

}  // namespace questbench
