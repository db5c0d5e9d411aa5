// What the emulator's names in emulator.h stand on: fibers, meetings of lanes, shared memory, copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qb::emulator {

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  size_t count() const { return static_cast<size_t>(x) * y * z; }
};

// Of the fiber that runs; set at every switch.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// Where a kernel called something.
struct Place {
  const char* file;
  int line;
};

template <class To, class From>
inline To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- Launches --------------------------------------------------------------------------------------------------------

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  const void* kernel;
};
// Runs all blocks of a launch. Throws std::runtime_error with kernel, block and thread if a check fails.
void run(const Launch& launch, void (*enter)(void*), void* arguments);

// The seed of the next launches; every launch advances it. 0: threads and blocks in order, one block at a time, copies
// land at their wait.
void set_seed(uint64_t seed);
// A random switch to another fiber, at points where others may run in between.
void may_switch();
// Ends the launch with an error that names kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- Barriers and warps ----------------------------------------------------------------------------------------------

void block_barrier(Place place);

enum class Meeting {
  kBarrier,
  kShuffle,
  kShuffleXor,
  kShuffleUp,
  kShuffleDown,
  kBallot,
  kGather,  // every lane learns the values of all
  kMultiply,
  kLoadMatrices,
};
// One lane's part in a meeting.
struct Part {
  uint64_t value = 0;   // what it brings
  int argument = 0;     // lane, offset or lane mask of a shuffle
  uint64_t result = 0;  // what it takes away
  void* out = nullptr;  // fragments and addresses of the tensor core instructions
  const void* a = nullptr;
  const void* b = nullptr;
  uint64_t* all = nullptr;  // kGather: room for 32 values
};
// Waits until all lanes of the mask that have not ended are here. `variant` must be the same for all of them (the width
// of a shuffle, the type of a product, which reduction). Returns the lanes that took part.
unsigned meet(Meeting kind, unsigned mask, int variant, Part& part, Place place);

inline void warp_barrier(unsigned mask, Place place) {
  Part part;
  meet(Meeting::kBarrier, mask, 0, part, place);
}

template <class T>
inline T shuffle(Meeting kind, unsigned mask, T value, int argument, int width, Place place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail("a shuffle of width %d", width);
  Part part;
  std::memcpy(&part.value, &value, sizeof(T));
  part.argument = argument;
  meet(kind, mask, width, part, place);
  std::memcpy(&value, &part.result, sizeof(T));
  return value;
}

struct Votes {
  unsigned set, voters;
};
Votes ballot(unsigned mask, bool predicate, Place place);

template <class T, class F>
inline T reduce(unsigned mask, T value, F&& combine, const char* name, Place place) {
  uint64_t values[32];
  Part part;
  std::memcpy(&part.value, &value, sizeof(T));
  part.all = values;
  int variant = 1;  // differs from ballots, and between reductions
  for (const char* at = name; *at != 0; ++at) variant = variant * 31 + *at;
  const unsigned lanes = meet(Meeting::kGather, mask, variant & 0x7fffffff, part, place);
  bool first = true;
  T out = value;
  for (int lane = 0; lane < 32; ++lane) {
    if ((lanes >> lane & 1u) == 0) continue;
    T other;
    std::memcpy(&other, &values[lane], sizeof(T));
    out = first ? other : combine(out, other);
    first = false;
  }
  return out;
}

void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bool half, Place place);
void load_matrices(unsigned (&out)[4], const void* row, bool transposed, Place place);

// ---- Memory ----------------------------------------------------------------------------------------------------------

// Reads as NaN as float, half and bfloat16, and as an index far outside of anything.
constexpr uint32_t kPoison = 0x7fb57fb5u;

unsigned char* shared_memory();
void check_shared_size(size_t bytes);
void check_aligned(const void* pointer, const char* what);

void copy_issue(void* to_shared, const void* from_global, bool valid);
void copy_commit();
void copy_wait(int groups);

// ---- 16-bit floats, rounded to nearest even ------------------------------------------------------------------------

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);
uint16_t float_to_bfloat16(float value);

}  // namespace qb::emulator
