// Shared memory of the block, and asynchronous copies into it.
#include <algorithm>

#include "block.h"

namespace qb::emulator {

namespace {

constexpr size_t kGuardBytes = 1024;
constexpr uint32_t kGuard = 0x7fa57fa5u;  // NaN as well, but not the poison

unsigned char* aligned(std::vector<unsigned char>& memory) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.data());
  // Aligned to 16 and to nothing more, so that a kernel that needs more shows.
  return memory.data() + ((address + 31) / 32 * 32 + 16 - address);
}

void fill(unsigned char* from, size_t bytes, uint32_t pattern) {
  for (size_t i = 0; i < bytes; ++i) from[i] = static_cast<unsigned char>(pattern >> (i % 4 * 8));
}

bool holds(const unsigned char* from, size_t bytes, uint32_t pattern) {
  for (size_t i = 0; i < bytes; ++i) {
    if (from[i] != static_cast<unsigned char>(pattern >> (i % 4 * 8))) return false;
  }
  return true;
}

void land(const Copy& copy) {
  if (copy.from != nullptr) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

}  // namespace

void set_up_shared(Block& block) {
  const size_t bytes = machine.launch.shared_bytes;
  block.shared.resize(bytes + 2 * kGuardBytes + 64);
  unsigned char* memory = aligned(block.shared);
  fill(memory, kGuardBytes, kGuard);
  fill(memory + kGuardBytes, bytes, kPoison);
  fill(memory + kGuardBytes + bytes, kGuardBytes, kGuard);
}

void check_guards(Block& block) {
  const unsigned char* memory = aligned(block.shared);
  const size_t bytes = machine.launch.shared_bytes;
  if (!holds(memory, kGuardBytes, kGuard)) fail("something was written below the %zu bytes of shared memory", bytes);
  if (!holds(memory + kGuardBytes + bytes, kGuardBytes, kGuard)) {
    fail("something was written above the %zu bytes of shared memory", bytes);
  }
}

unsigned char* shared_memory() { return aligned(machine.current->block->shared) + kGuardBytes; }

void check_shared_size(size_t bytes) {
  if (bytes > machine.launch.shared_bytes) {
    fail("%zu bytes of shared memory are used, the launch asked for %zu", bytes, machine.launch.shared_bytes);
  }
}

void check_aligned(const void* pointer, const char* what) {
  if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) fail("%s: %p is not aligned to 16 bytes", what, pointer);
}

void copy_issue(void* to_shared, const void* from_global, bool valid) {
  check_aligned(to_shared, "copy_async16 to shared memory");
  if (valid) check_aligned(from_global, "copy_async16 from global memory");
  const unsigned char* first = shared_memory();
  const unsigned char* to = static_cast<const unsigned char*>(to_shared);
  if (to < first || to + 16 > first + machine.launch.shared_bytes) {
    fail("copy_async16 goes outside of shared memory: byte %td of %zu", to - first, machine.launch.shared_bytes);
  }
  fill(static_cast<unsigned char*>(to_shared), 16, kPoison);
  Thread& self = *machine.current;
  self.copies.push_back({to_shared, valid ? from_global : nullptr, self.group});
}

void copy_commit() {
  ++machine.current->group;
  may_switch();
}

void copy_wait(int groups) {
  Thread& self = *machine.current;
  const auto covered = [&](const Copy& copy) { return copy.group + static_cast<unsigned>(groups) < self.group; };
  for (const Copy& copy : self.copies) {
    if (covered(copy)) land(copy);
  }
  self.copies.erase(std::remove_if(self.copies.begin(), self.copies.end(), covered), self.copies.end());
  may_switch();
}

// The machine may complete any copy at any time.
void land_some(Thread& thread) {
  if (machine.land_chance == 0 || thread.copies.empty()) return;
  for (size_t i = 0; i < thread.copies.size();) {
    if (machine.random.below(256) >= machine.land_chance) {
      ++i;
      continue;
    }
    land(thread.copies[i]);
    thread.copies.erase(thread.copies.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

void land_all(Thread& thread) {
  for (const Copy& copy : thread.copies) land(copy);
  thread.copies.clear();
}

}  // namespace qb::emulator
