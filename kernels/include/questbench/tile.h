// Micro-kernels over tiles of up to 16 rows of storage, one table per storage type and head dimension.
//
// A row is a key, a value or the bounds of a page. Rows lie anywhere: row r starts at base + offsets[r] bytes.
// Every call may prefetch the rows of a later tile, because the 4 KB tiles of one head are far apart and hardware
// prefetchers stop at page ends.
#pragma once

#include <cstdint>

#include "questbench/types.h"

namespace questbench {

constexpr int kTileRows = 16;

// Rows to ask memory for while a tile is worked on; none if `base` is null.
struct Ahead {
  const char* base = nullptr;
  const int64_t* offsets = nullptr;
};

// Bytes of a query of `length` elements in the private layout of Tile::Prepare*.
constexpr int64_t PreparedBytes(int64_t length) { return (length + 63) / 64 * 64 * 4; }

// fp32 slots of one accumulator row.
constexpr int64_t AccumulatorWidth(int64_t dim) { return (dim + 63) / 64 * 64; }

struct Tile {
  // Queries, ready for `Dots` and `ScoreDots`. A page score is a dot product of length 2 * dim, because
  // max(q * max, q * min) = max(q, 0) * max + min(q, 0) * min where max >= min.
  void (*prepare)(const void* q, int dim, void* prepared);
  void (*prepare_signed)(const void* q, int dim, void* prepared);

  // sums[r] = prepared . row[r] for 16 rows.
  void (*dots)(const char* base, const int64_t* offsets, const void* prepared, int dim, float* sums,
               Ahead ahead);
  // The same for page bounds; rows are [max | min], 2 * dim elements.
  void (*score_dots)(const char* base, const int64_t* offsets, const void* prepared, int dim, float* sums,
                     Ahead ahead);
  // One page score by its definition, for bounds where the dot product meets 0 * infinity.
  float (*score_exactly)(const void* q, const char* bounds, int dim);

  // sums[h][:] += sum_r weights[h][r] * row[r] for `heads` accumulator rows in a private order of channels.
  void (*accumulate)(const char* base, const int64_t* offsets, int rows, const float* weights,
                     int64_t weight_stride, int heads, float* sums, int64_t sum_stride, int dim, Ahead ahead);
  // Storage of an accumulator row times `factor`.
  void (*finish)(const float* sums, float factor, int dim, void* out);

  // Largest and smallest value per channel over `count` > 0 contiguous rows; NaN wins.
  void (*bounds)(const char* rows, int64_t count, int dim, char* largest, char* smallest);
};

const Tile& Float32Tile(int64_t dim);
const Tile& Float16Tile(int64_t dim);
const Tile& BFloat16Tile(int64_t dim);

inline const Tile& TileFor(DType dtype, int64_t dim) {
  switch (dtype) {
    case DType::kFloat32:
      return Float32Tile(dim);
    case DType::kFloat16:
      return Float16Tile(dim);
    default:
      return BFloat16Tile(dim);
  }
}

}  // namespace questbench
