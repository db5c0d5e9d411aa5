// A stack of its own for every thread of a block, and the switch from one to another.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace qb::emulator {

constexpr size_t kStackBytes = 256 * 1024;

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

// Lets the next switch to `fiber` call `entry` on a fresh stack. Whatever ran there before is forgotten. `entry` must
// not return.
void prepare(Fiber& fiber, unsigned char* stack, void (*entry)());
// Saves where it is in `from` and goes on where `to` was saved.
void switch_fiber(Fiber& from, Fiber& to);
// Stack number `index`; made at first use, never freed. A page below it cannot be written.
unsigned char* stack(size_t index);

}  // namespace qb::emulator
