#include "steps.h"

namespace questbench {

template void score(const Score<float>&);
template void attend(Attend<float>&, int);
template void attend_top(const Score<float>&, const Select&, Attend<float>&);

}  // namespace questbench
