// Micro-kernels for bf16 storage.
#include "questbench/tile_impl.h"

namespace questbench {

const Tile& BFloat16Tile(int64_t dim) { return PickTile<BFloat16>(dim); }

}  // namespace questbench
