#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <vector>

#if defined(__x86_64__)
// Keeps what the System V ABI lets a callee keep; swapcontext would make a system call for the signal mask each time.
asm(R"(
.text
.align 16
.hidden qb_emulator_switch
.globl qb_emulator_switch
.type qb_emulator_switch, @function
qb_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qb_emulator_switch, .-qb_emulator_switch
)");
extern "C" void qb_emulator_switch(void** from, void* to);
#endif

namespace qb::emulator {

#if defined(__x86_64__)

void prepare(Fiber& fiber, unsigned char* stack, void (*entry)()) {
  // Six saved registers, the address to return to, and a null return address for `entry`, aligned as after a call.
  uint64_t* top = reinterpret_cast<uint64_t*>(stack + kStackBytes) - 1;
  top[0] = 0;
  top[-1] = reinterpret_cast<uint64_t>(entry);
  for (int saved = 2; saved <= 7; ++saved) top[-saved] = 0;
  fiber.stack_pointer = top - 7;
}

void switch_fiber(Fiber& from, Fiber& to) { qb_emulator_switch(&from.stack_pointer, to.stack_pointer); }

#else

void prepare(Fiber& fiber, unsigned char* stack, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

unsigned char* stack(size_t index) {
  static std::vector<unsigned char*> stacks;
  if (stacks.size() <= index) stacks.resize(index + 1);
  if (stacks[index] == nullptr) {
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, guard, PROT_NONE);
    stacks[index] = static_cast<unsigned char*>(memory) + guard;
  }
  return stacks[index];
}

}  // namespace qb::emulator
