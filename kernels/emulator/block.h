// The state of the blocks that run. One launch runs at a time in a process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fiber.h"
#include "runtime.h"

namespace qb::emulator {

// xorshift64*: the schedule must not depend on a library's version.
struct Random {
  uint64_t state = 1;
  uint64_t next() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
  }
  unsigned below(unsigned bound) { return static_cast<unsigned>((next() >> 32) * bound >> 32); }
};

struct Copy {
  void* to;
  const void* from;  // null: zeros
  unsigned group;
};

enum class State { kReady, kAtBarrier, kMeeting, kEnded };

struct Block;

struct Thread {
  Fiber fiber;
  Block* block;
  uint3 index;
  unsigned warp, lane;
  State state;
  Place place;     // where it waits
  unsigned mask;   // kMeeting: for whom
  Part* part;      // kMeeting: what it brought
  unsigned lanes;  // of the meeting it comes from
  std::vector<Copy> copies;
  unsigned group;  // that the next copies belong to
};

// Lanes that wait for each other.
struct Gathering {
  Meeting kind;
  unsigned mask;
  int variant;
  Place place;
  unsigned arrived;
};

struct Warp {
  unsigned existing, ended, ready;
  std::vector<Gathering> gatherings;
};

enum class Order { kAscending, kDescending, kUniform, kWarpByWarp };

// A block that is resident: started and not yet over.
struct Block {
  bool running = false;
  uint3 index;
  size_t first_stack;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned warps_ready;  // bit per warp
  unsigned favoured;     // kWarpByWarp
  size_t alive, at_barrier;
  Thread* first_at_barrier;
  std::vector<unsigned char> shared;  // guard, memory, guard
};

struct Machine {
  Launch launch;
  void (*enter)(void*);
  void* arguments;
  Random random;
  Order order;
  unsigned switch_chance;  // of 256, at a point where a switch is possible
  unsigned land_chance;    // of 256, for a copy to land there
  std::vector<Block> resident;
  size_t favoured;              // of the resident blocks
  std::vector<size_t> numbers;  // of the blocks, in the order in which they start
  size_t started;
  Thread* current;  // null outside of fibers
  Fiber outside;
  std::string error;
};
extern Machine machine;

void make_ready(Thread& thread);
// Gives up the processor until someone has made this thread ready.
void wait_until_ready();
// A thread has ended: whoever waited only for it goes on.
void leave_barrier(Block& block);
void leave_warp(Thread& thread);

void set_up_shared(Block& block);
void check_guards(Block& block);
void land_some(Thread& thread);
void land_all(Thread& thread);

std::string thread_name(const Thread& thread);
std::string place_name(Place place);
bool same(Place a, Place b);

}  // namespace qb::emulator
