// The emulator's own functions, beside those of the kernels it is linked with.
#include <tvm/ffi/function.h>

#include "runtime.h"

namespace qb::emulator {
namespace {

void bind_set_seed(int64_t seed) { set_seed(static_cast<uint64_t>(seed)); }

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(emulator_set_seed, bind_set_seed);

}  // namespace qb::emulator
