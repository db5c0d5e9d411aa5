// Micro-kernels for fp32 storage.
#include "questbench/tile_impl.h"

namespace questbench {

const Tile& Float32Tile(int64_t dim) { return PickTile<float>(dim); }

}  // namespace questbench
