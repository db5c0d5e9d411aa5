// Sixteen entries against the query heads that share them, on the tensor cores of one warp. Heads are the rows of the
// products (16, the unused ones zero), so that probabilities go from one product into the next without leaving registers.
#pragma once

#include <cmath>

#include "launches.h"

namespace qb {

constexpr int kTile = 16;

// 16-byte pieces of a row of D elements are permuted by the row's number: rows of a column lie in different banks.
template <int D>
QB_DEVICE int piece_at(int row, int piece) {
  return row * D + ((piece ^ (row & 7)) << 3);
}

// s[n] = queries . keys of the entries 8 n .. 8 n + 7, as fragments: this lane has heads lane / 4 and lane / 4 + 8, entries
// 2 (lane % 4) and the next.
template <class T, int D>
QB_DEVICE void products(const T* queries, const T* keys, float (&s)[2][4]) {
  const int lane = threadIdx.x % kWarpSize, matrix = lane / 8, r = lane % 8;
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] = 0;
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    unsigned a[4], b[4];
    load_matrix_4(a, queries + piece_at<D>(r + (matrix & 1) * 8, 2 * step + (matrix >> 1)));
    load_matrix_4(b, keys + piece_at<D>(r + (matrix >> 1) * 8, 2 * step + (matrix & 1)));
    const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_16x8x16<T>(s[0], a, first);
    mma_16x8x16<T>(s[1], a, second);
  }
}

// acc += p . values. Weights go in as the sum of two 16-bit parts: one alone would cost the output half its digits.
template <class T, int D>
QB_DEVICE void add_values(const T* values, const float (&p)[2][4], float (&acc)[D / 8][4]) {
  const int lane = threadIdx.x % kWarpSize, matrix = lane / 8, r = lane % 8;
  unsigned high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float x = p[i / 2][i % 2 * 2], y = p[i / 2][i % 2 * 2 + 1];
    high[i] = pack2<T>(x, y);
    const Float2 rounded = unpack2<T>(high[i]);
    low[i] = pack2<T>(x - rounded.x, y - rounded.y);
  }
#pragma unroll
  for (int pair = 0; pair < D / 16; ++pair) {
    unsigned b[4];
    load_matrix_4_transposed(b, values + piece_at<D>(r + (matrix & 1) * 8, 2 * pair + (matrix >> 1)));
    const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_16x8x16<T>(acc[2 * pair], high, first);
    mma_16x8x16<T>(acc[2 * pair], low, first);
    mma_16x8x16<T>(acc[2 * pair + 1], high, second);
    mma_16x8x16<T>(acc[2 * pair + 1], low, second);
  }
}

// Running maximum (in powers of two), sum and weighted values of the two heads of a lane.
template <int D>
struct Running {
  float top[2] = {-INFINITY, -INFINITY};
  float total[2] = {0, 0};  // of this lane's entries alone
  float acc[D / 8][4] = {};

  // Takes logits and leaves probabilities relative to the new maximum.
  QB_DEVICE void take(float (&s)[2][4]) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float best = fmaxf(fmaxf(s[0][2 * side], s[0][2 * side + 1]), fmaxf(s[1][2 * side], s[1][2 * side + 1]));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
      best = fmaxf(best, top[side]);
      const float base = best == -INFINITY ? 0 : best;  // entries of -inf alone weigh nothing
      const float shrink = exp2f(top[side] - base);
      top[side] = best;
      total[side] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) acc[n][2 * side] *= shrink, acc[n][2 * side + 1] *= shrink;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 2 * side; i < 2 * side + 2; ++i) {
          s[n][i] = exp2f(s[n][i] - base);
          total[side] += s[n][i];
        }
      }
    }
  }
};

}  // namespace qb
