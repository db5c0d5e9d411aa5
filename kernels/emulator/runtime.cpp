// Launches and the schedule of fibers.
#include "runtime.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "block.h"

namespace qb::emulator {

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
Machine machine;

namespace {

constexpr size_t kMaxThreads = 1024;
constexpr size_t kMaxResident = 4;
constexpr size_t kMaxShared = 227 * 1024;  // sm_90 and sm_100; sm_80 has 163 KiB

std::mutex one_launch;
uint64_t seed = 0, launches = 0;
sigjmp_buf after_fault;
pthread_t runner;
const volatile void* fault_address;
int fault_signal;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string text(uint3 at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

std::string kernel_name() {
  Dl_info info;
  if (dladdr(machine.launch.kernel, &info) == 0 || info.dli_saddr != machine.launch.kernel) return "(unnamed)";
  int status = 0;
  char* readable = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  const std::string name = status == 0 ? readable : info.dli_sname;
  std::free(readable);
  return name;
}

std::string where() {
  std::string out = "emulator: kernel " + kernel_name() + ", block " + text(blockIdx);
  if (machine.current != nullptr) out += ", thread " + thread_name(*machine.current);
  return out + ": ";
}

// The n-th set bit, counted from the lowest.
unsigned nth_bit(unsigned bits, unsigned n) {
  for (; n > 0; --n) bits &= bits - 1;
  return static_cast<unsigned>(__builtin_ctz(bits));
}
unsigned lowest(unsigned bits) { return static_cast<unsigned>(__builtin_ctz(bits)); }
unsigned highest(unsigned bits) { return 31u - static_cast<unsigned>(__builtin_clz(bits)); }
unsigned any(unsigned bits) {
  return nth_bit(bits, machine.random.below(static_cast<unsigned>(__builtin_popcount(bits))));
}

// A resident block with a ready thread: mostly the one of last time, sometimes another.
Block* pick_block() {
  const size_t count = machine.resident.size();
  if (count > 1 && machine.random.below(16) == 0) {
    machine.favoured = machine.random.below(static_cast<unsigned>(count));
  }
  for (size_t i = 0; i < count; ++i) {
    const size_t at = (machine.favoured + i) % count;
    if (machine.resident[at].warps_ready == 0) continue;
    machine.favoured = at;
    return &machine.resident[at];
  }
  return nullptr;
}

// Takes one of the ready threads; null if there is none.
Thread* pick() {
  Block* const block = pick_block();
  if (block == nullptr) return nullptr;
  unsigned warp = 0, lane = 0;
  switch (machine.order) {
    case Order::kAscending:
      warp = lowest(block->warps_ready), lane = lowest(block->warps[warp].ready);
      break;
    case Order::kDescending:
      warp = highest(block->warps_ready), lane = highest(block->warps[warp].ready);
      break;
    case Order::kUniform:
      warp = any(block->warps_ready), lane = any(block->warps[warp].ready);
      break;
    case Order::kWarpByWarp:
      if ((block->warps_ready >> block->favoured & 1u) == 0 || machine.random.below(32) == 0) {
        block->favoured = any(block->warps_ready);
      }
      warp = block->favoured, lane = any(block->warps[warp].ready);
      break;
  }
  Warp& from = block->warps[warp];
  from.ready &= ~(1u << lane);
  if (from.ready == 0) block->warps_ready &= ~(1u << warp);
  return &block->threads[warp * 32 + lane];
}

// Who waits for what, threads that wait for the same thing counted together.
std::string deadlock(const Block& block) {
  std::map<std::string, std::pair<std::string, int>> groups;
  for (const Thread& thread : block.threads) {
    if (thread.state == State::kEnded) continue;
    char lanes[40];
    std::snprintf(lanes, sizeof(lanes), "for lanes 0x%08x", thread.mask);
    const char* what = thread.state == State::kAtBarrier ? "in __syncthreads" : lanes;
    const auto added = groups.insert({what + (" at " + place_name(thread.place)), {thread_name(thread), 0}});
    ++added.first->second.second;
  }
  std::string out = "nothing can go on: ";
  for (const auto& [what, who] : groups) {
    out += "thread " + who.first;
    if (who.second > 1) out += " and " + std::to_string(who.second - 1) + " more";
    out += " wait " + what + "; ";
  }
  return out + std::to_string(block.threads.size() - block.alive) + " threads have ended";
}

void leave(std::string error) {
  machine.error = std::move(error);
  Fiber gone;
  switch_fiber(gone, machine.outside);
  std::abort();
}

// Hands over from the fiber `from` to any that is ready, or to the outside if none is.
void hand_over(Fiber& from) {
  Thread* next = pick();
  machine.current = next;
  if (next == nullptr) {
    switch_fiber(from, machine.outside);
    return;
  }
  threadIdx = next->index, blockIdx = next->block->index;
  if (&next->fiber != &from) switch_fiber(from, next->fiber);
}

void thread_main() {
  try {
    machine.enter(machine.arguments);
  } catch (const Failure& failure) {
    leave(failure.what());
  } catch (const std::exception& error) {
    leave(where() + "the kernel threw " + error.what());
  }
  Thread& self = *machine.current;
  Block& block = *self.block;
  land_all(self);
  self.state = State::kEnded;
  --block.alive;
  leave_warp(self);
  leave_barrier(block);
  if (block.alive > 0) {
    hand_over(self.fiber);
  } else {
    machine.current = nullptr;
    switch_fiber(self.fiber, machine.outside);  // where the next block starts on these stacks
  }
  std::abort();
}

void on_fault(int signal, siginfo_t* info, void*) {
  if (!pthread_equal(pthread_self(), runner) || machine.current == nullptr) {
    ::signal(signal, SIG_DFL);  // not ours: the instruction runs again and ends the process as it would have
    return;
  }
  fault_signal = signal;
  fault_address = info->si_addr;
  siglongjmp(after_fault, 1);
}

// Turns faults in kernels into errors while it lives.
class FaultGuard {
 public:
  FaultGuard() {
    runner = pthread_self();
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &before_[i]);
  }
  ~FaultGuard() {
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGFPE};
  struct sigaction before_[3];
};

void start(Block& block, size_t number) {
  const dim3& grid = machine.launch.grid;
  const dim3& size = machine.launch.block;
  block.running = true;
  block.index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                 static_cast<unsigned>(number / grid.x / grid.y)};
  for (Warp& warp : block.warps) warp = Warp{0, 0, 0, {}};
  block.warps_ready = 0, block.favoured = 0;
  block.alive = block.threads.size(), block.at_barrier = 0;
  for (size_t i = 0; i < block.threads.size(); ++i) {
    Thread& thread = block.threads[i];
    const unsigned at = static_cast<unsigned>(i);
    thread.block = &block;
    thread.index = {at % size.x, at / size.x % size.y, at / size.x / size.y};
    thread.warp = at / 32, thread.lane = at % 32;
    thread.copies.clear(), thread.group = 0;
    block.warps[thread.warp].existing |= 1u << thread.lane;
    prepare(thread.fiber, stack(block.first_stack + i), thread_main);
    make_ready(thread);
  }
  set_up_shared(block);
}

// Ends blocks that are over and starts others in their place. False: all are over.
bool refill() {
  bool running = false;
  for (Block& block : machine.resident) {
    if (block.running && block.alive == 0) {
      block.running = false;
      blockIdx = block.index;
      check_guards(block);
    }
    if (!block.running && machine.started < machine.numbers.size()) start(block, machine.numbers[machine.started++]);
    running |= block.running;
  }
  return running;
}

bool run_fibers() {
  if (sigsetjmp(after_fault, 1) == 0) {
    hand_over(machine.outside);
    return machine.error.empty();
  }
  char address[40];
  std::snprintf(address, sizeof(address), " at address %p", const_cast<const void*>(fault_address));
  machine.error = where() + (fault_signal == SIGFPE ? "a division by zero" : "illegal memory access") + address;
  return false;
}

void run_blocks() {
  while (refill()) {
    const Block* waiting = nullptr;
    bool ready = false;
    for (const Block& block : machine.resident) {
      if (block.running && block.warps_ready == 0 && waiting == nullptr) waiting = &block;
      ready |= block.running && block.warps_ready != 0;
    }
    if (!ready) {
      blockIdx = waiting->index;
      throw Failure(where() + deadlock(*waiting));
    }
    if (!run_fibers()) throw Failure(machine.error);
  }
}

void choose_schedule() {
  // splitmix64: neighbouring seeds must not give neighbouring schedules.
  uint64_t mixed = seed * 0x9e3779b97f4a7c15ull + ++launches * 0xd1342543de82ef95ull;
  mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
  machine.random.state = (mixed ^ mixed >> 31) | 1u;
  machine.order = Order::kAscending, machine.switch_chance = 0, machine.land_chance = 0;
  if (seed == 0) return;
  constexpr Order kOrders[] = {Order::kUniform, Order::kWarpByWarp, Order::kUniform, Order::kDescending};
  constexpr unsigned kChances[] = {0, 16, 128};
  machine.order = kOrders[machine.random.below(4)];
  machine.switch_chance = kChances[machine.random.below(3)];
  machine.land_chance = kChances[machine.random.below(3)];
}

}  // namespace

std::string thread_name(const Thread& thread) { return text(thread.index); }

std::string place_name(Place place) {
  const char* slash = std::strrchr(place.file, '/');
  return std::string(slash == nullptr ? place.file : slash + 1) + ":" + std::to_string(place.line);
}

bool same(Place a, Place b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

void make_ready(Thread& thread) {
  thread.state = State::kReady;
  thread.block->warps[thread.warp].ready |= 1u << thread.lane;
  thread.block->warps_ready |= 1u << thread.warp;
}

void wait_until_ready() { hand_over(machine.current->fiber); }

void may_switch() {
  Thread& self = *machine.current;
  land_some(self);
  if (machine.switch_chance == 0 || machine.random.below(256) >= machine.switch_chance) return;
  make_ready(self);
  wait_until_ready();
}

void fail(const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  throw Failure(where() + message);
}

void set_seed(uint64_t value) {
  seed = value;
  launches = 0;
}

void run(const Launch& launch, void (*enter)(void*), void* arguments) {
  const std::lock_guard<std::mutex> guard(one_launch);
  machine.launch = launch, machine.enter = enter, machine.arguments = arguments;
  machine.current = nullptr, machine.error.clear();
  blockIdx = {0, 0, 0}, gridDim = launch.grid, blockDim = launch.block;
  const size_t threads = launch.block.count(), blocks = launch.grid.count();
  if (threads == 0 || threads > kMaxThreads || launch.block.z > 64) fail("a block of %zu threads", threads);
  if (blocks == 0 || launch.grid.x > INT32_MAX || launch.grid.y > 65535 || launch.grid.z > 65535) {
    fail("a grid of %u x %u x %u blocks", launch.grid.x, launch.grid.y, launch.grid.z);
  }
  if (launch.shared_bytes > kMaxShared) fail("%zu bytes of shared memory", launch.shared_bytes);
  choose_schedule();
  machine.numbers.resize(blocks);
  std::iota(machine.numbers.begin(), machine.numbers.end(), size_t{0});
  size_t resident = 1;
  if (seed != 0) {
    for (size_t i = blocks - 1; i > 0; --i) {
      std::swap(machine.numbers[i], machine.numbers[machine.random.below(static_cast<unsigned>(i + 1))]);
    }
    resident = std::min<size_t>(1 + machine.random.below(kMaxResident), blocks);
  }
  machine.started = 0, machine.favoured = 0;
  machine.resident.resize(resident);
  for (size_t i = 0; i < resident; ++i) {
    Block& block = machine.resident[i];
    block.running = false, block.warps_ready = 0, block.first_stack = i * kMaxThreads;
    block.threads.resize(threads);
    block.warps.resize((threads + 31) / 32);
  }
  const FaultGuard faults;
  run_blocks();
}

}  // namespace qb::emulator
