// Micro-kernels for fp16 storage.
#include "questbench/tile_impl.h"

namespace questbench {

const Tile& Float16Tile(int64_t dim) { return PickTile<Half>(dim); }

}  // namespace questbench
