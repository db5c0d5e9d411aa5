#include "steps.h"

namespace questbench {

template void score(const Score<bf16>&);
template void attend(Attend<bf16>&, int);
template void attend_top(const Score<bf16>&, const Select&, Attend<bf16>&);

}  // namespace questbench
