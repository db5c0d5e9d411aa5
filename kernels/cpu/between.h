// What stands between two calls of attention in a decode step, in one parallel region each: `enter` goes from the hidden
// state to queries, keys and values (or to logits), `leave` from the output of attention to the next hidden state.
//
// Sums are fp32. A result is rounded to T once behind each norm, layer, rotation, gate and residual. Weights are all that is
// read from memory; what is passed on stays in the caches. No value depends on the number of threads or on other rows.
#pragma once

#include <cmath>

#include "questbench/linear.h"

namespace questbench {

// x / rms(x) * scale; nothing where `scale` is null.
struct Norm {
  const float* scale;
  float epsilon;
};

// act(x) = x / (1 + exp(-(linear x + cubic x^3))): SiLU by (1, 0); GELU in its tanh form by (2 sqrt(2 / pi), 0.044715
// times that), since (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)).
struct Gate {
  float linear, cubic;
};

constexpr int kMostWeights = 3;  // linear layers with the same input

template <typename T>
struct Enter {
  const T* hidden;  // [rows, inputs]
  Norm norm;
  T* normed;                      // [rows, inputs]
  Linear<T> weights[kMostWeights];  // of `normed`; their outputs side by side
  int count;
  // Heads behind each other in a row of the output: queries, keys, values. None without `head_dim`.
  int64_t head_dim, query_heads, kv_heads;
  Norm q_norm, k_norm;
  float* arranged;
};

// Turns queries and keys where `cos` is given: [rows or 1, turned] both, of which row r is `angle_stride` r further.
template <typename T>
void enter(const Enter<T>& job, const T* cos, const T* sin, int64_t turned, int64_t angle_stride, int threads);

template <typename T>
struct Leave {
  Linear<T> out;     // of the output of attention, into `delta`
  Norm out_norm;     // of that, if it has one
  T* hidden;         // [rows, width]: read and written
  Norm mlp_norm;     // of the sum
  T* normed;         // [rows, width]
  Linear<T> gate, up;  // of `normed`
  Gate activation;
  T* mixed;          // [rows, inner]: act(gate) up
  Linear<T> down;    // of `mixed`, into `delta`
  Norm down_norm;
  T* delta;          // [rows, width]
  float *arranged_width, *arranged_inner;  // room for rows of `attended` or `normed`, and of `mixed`
};
template <typename T>
void leave(const Leave<T>& job, int threads);

// out = x / rms(x) * scale, or x where there is no scale; in place if they are the same.
template <typename T>
void normalise(const T* x, int64_t n, Norm norm, T* out);
// out = act(gate) up.
template <typename T>
void gated(const T* gate, const T* up, int64_t n, Gate activation, T* out);
// Rotary embedding of the halves of the first `turned` channels of a head, in place.
template <typename T, typename Angle>
void turn(T* x, const Angle* cos, const Angle* sin, int64_t turned);

// Heads turned by a number of positions: pair i of the first 2 pairs channels by the angle delta * frequency[i].
template <typename T>
struct Rotate {
  const T* x;              // [rows, heads, head_dim]
  const int32_t* delta;    // [rows]
  const float* frequency;  // [pairs]
  int64_t rows, heads, head_dim, pairs;
  T* out;                  // as x
};
template <typename T>
void rotate(const Rotate<T>& job);

}  // namespace questbench
