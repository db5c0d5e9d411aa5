// What the library is told of the choices for this machine, and what there is to choose. Python names the settings and
// their values (questbench/kernels/_choices.py); here they are numbers.
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include "questbench/choices.h"
#include "questbench/pairs.h"

namespace questbench {
namespace {

constexpr int64_t kMostAhead = 64;  // tiles
enum Setting : int64_t { kOrder, kAhead, kFetch, kProducts, kValues, kWeights, kSettings };

void check(int64_t kind, int64_t setting) {
  if (kind < 0 || kind >= kKinds || setting < 0 || setting >= kSettings)
    TVM_FFI_THROW(ValueError) << "no setting " << setting << " of a kind " << kind;
}

// Whether the code for this processor has more than one way of a setting.
bool bind_offers(int64_t setting) {
  check(0, setting);
  if (setting == kFetch || setting == kProducts || setting == kValues) return kBlocks;
  return setting != kWeights || kPairs<bf16>;
}

int64_t bind_choice(int64_t kind, int64_t setting) {
  check(kind, setting);
  const Choice& now = chosen[kind];
  switch (setting) {
    case kOrder: return now.together;
    case kAhead: return now.ahead;
    case kFetch: return now.level;
    case kProducts: return now.queries;
    case kValues: return now.heads;
    default: return now.pairs;
  }
}

bool known(int64_t setting, int64_t value) {
  switch (setting) {
    case kAhead: return value >= 0 && value <= kMostAhead;
    case kFetch: return value == 1 || value == 2;
    case kProducts:
    case kValues: return value == 1 || value == 2 || value == 4;
    default: return value == 0 || value == 1;
  }
}

void bind_choose(int64_t kind, int64_t setting, int64_t value) {
  check(kind, setting);
  if (!known(setting, value)) TVM_FFI_THROW(ValueError) << "setting " << setting << " cannot be " << value;
  Choice& now = chosen[kind];
  switch (setting) {
    case kOrder: now.together = value != 0; break;
    case kAhead: now.ahead = value; break;
    case kFetch: now.level = static_cast<int>(value); break;
    case kProducts: now.queries = static_cast<int>(value); break;
    case kValues: now.heads = static_cast<int>(value); break;
    default: now.pairs = value != 0;
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(offers, bind_offers);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(choice, bind_choice);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(choose, bind_choose);

}  // namespace questbench
