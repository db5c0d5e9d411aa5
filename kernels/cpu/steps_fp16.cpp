#include "steps.h"

namespace questbench {

template void score(const Score<fp16>&);
template void attend(Attend<fp16>&, int);
template void attend_top(const Score<fp16>&, const Select&, Attend<fp16>&);

}  // namespace questbench
