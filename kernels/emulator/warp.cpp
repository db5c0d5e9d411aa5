// Where threads wait for each other: barriers of the block, and meetings of the lanes of a warp.
#include <cmath>

#include "block.h"

namespace qb::emulator {

// ---- The block's barrier -----------------------------------------------------------------------------------------

namespace {

void release_barrier(Block& block) {
  block.at_barrier = 0;
  for (Thread& thread : block.threads) {
    if (thread.state == State::kAtBarrier) make_ready(thread);
  }
}

}  // namespace

void block_barrier(Place place) {
  Thread& self = *machine.current;
  Block& block = *self.block;
  land_some(self);
  if (block.at_barrier == 0) {
    block.first_at_barrier = &self;
  } else if (!same(block.first_at_barrier->place, place)) {
    fail("the block diverges: this thread is in __syncthreads at %s, thread %s in the one at %s",
         place_name(place).c_str(), thread_name(*block.first_at_barrier).c_str(),
         place_name(block.first_at_barrier->place).c_str());
  }
  self.state = State::kAtBarrier, self.place = place;
  if (++block.at_barrier == block.alive) release_barrier(block);
  wait_until_ready();
}

// A barrier waits for the threads that have not ended (CUDA from compute capability 7.0 on).
void leave_barrier(Block& block) {
  if (block.at_barrier > 0 && block.at_barrier == block.alive) release_barrier(block);
}

// ---- Meetings ------------------------------------------------------------------------------------------------------

namespace {

Thread& lane_of(const Warp& warp, unsigned lane) {
  Block& block = *machine.current->block;
  return block.threads[static_cast<size_t>(&warp - block.warps.data()) * 32 + lane];
}

int source_lane(Meeting kind, int lane, int argument, int width) {
  const int first = lane & ~(width - 1), last = first + width - 1;
  switch (kind) {
    case Meeting::kShuffle: return first + (argument & (width - 1));
    case Meeting::kShuffleXor: return (lane ^ argument) > last ? lane : lane ^ argument;
    case Meeting::kShuffleUp: return lane - argument < first ? lane : lane - argument;
    default: return lane + argument > last ? lane : lane + argument;
  }
}

float element(const unsigned* registers, int index, bool half) {
  const uint16_t bits = static_cast<uint16_t>(registers[index / 2] >> (index % 2 * 16));
  return half ? half_to_float(bits) : bits_of<float>(static_cast<uint32_t>(bits) << 16);
}

// Sums of tensor cores are cut off, not rounded to nearest.
float toward_zero(double exact) {
  const float nearest = static_cast<float>(exact);
  if (std::isinf(nearest) || std::fabs(static_cast<double>(nearest)) <= std::fabs(exact)) return nearest;
  return std::nextafterf(nearest, 0.0f);
}

void multiply_fragments(const Warp& warp, bool half) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Part& part = *lane_of(warp, static_cast<unsigned>(lane)).part;
    const unsigned* from_a = static_cast<const unsigned*>(part.a);
    const unsigned* from_b = static_cast<const unsigned*>(part.b);
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 8; ++i) a[row + (i / 2 % 2) * 8][column + i % 2 + i / 4 * 8] = element(from_a, i, half);
    for (int i = 0; i < 4; ++i) b[column + i % 2 + i / 2 * 8][row] = element(from_b, i, half);
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<float*>(lane_of(warp, static_cast<unsigned>(lane)).part->out);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int half_of_k = 0; half_of_k < 16; half_of_k += 8) {
        double sum = d[i];
        for (int k = half_of_k; k < half_of_k + 8; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
        d[i] = toward_zero(sum);
      }
    }
  }
}

void copy_matrices(const Warp& warp, bool transposed) {
  uint16_t matrices[4][8][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    std::memcpy(matrices[lane / 8][lane % 8], lane_of(warp, lane).part->a, 16);
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    unsigned* out = static_cast<unsigned*>(lane_of(warp, lane).part->out);
    const unsigned row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const uint16_t low = transposed ? matrices[i][column][row] : matrices[i][row][column];
      const uint16_t high = transposed ? matrices[i][column + 1][row] : matrices[i][row][column + 1];
      out[i] = low | static_cast<unsigned>(high) << 16;
    }
  }
}

// All are there: every lane gets its result and may go on.
void finish(Warp& warp, const Gathering& done) {
  uint64_t values[32];
  unsigned set = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    values[lane] = static_cast<uint64_t>(kPoison) << 32 | kPoison;  // what a lane that does not take part would give
    if ((done.arrived >> lane & 1u) == 0) continue;
    values[lane] = lane_of(warp, lane).part->value;
    set |= (values[lane] != 0 ? 1u : 0u) << lane;
  }
  if (done.kind == Meeting::kMultiply) multiply_fragments(warp, done.variant != 0);
  if (done.kind == Meeting::kLoadMatrices) copy_matrices(warp, done.variant != 0);
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((done.arrived >> lane & 1u) == 0) continue;
    Thread& thread = lane_of(warp, lane);
    switch (done.kind) {
      case Meeting::kShuffle:
      case Meeting::kShuffleXor:
      case Meeting::kShuffleUp:
      case Meeting::kShuffleDown:
        thread.part->result =
            values[source_lane(done.kind, static_cast<int>(lane), thread.part->argument, done.variant) & 31];
        break;
      case Meeting::kBallot: thread.part->result = set; break;
      case Meeting::kGather: std::memcpy(thread.part->all, values, sizeof(values)); break;
      default: break;
    }
    thread.lanes = done.arrived;
    make_ready(thread);
  }
}

bool complete(const Warp& warp, const Gathering& gathering) {
  return gathering.arrived == (gathering.mask & warp.existing & ~warp.ended);
}

const char* name(Meeting kind) {
  switch (kind) {
    case Meeting::kBarrier: return "__syncwarp";
    case Meeting::kShuffle: return "__shfl_sync";
    case Meeting::kShuffleXor: return "__shfl_xor_sync";
    case Meeting::kShuffleUp: return "__shfl_up_sync";
    case Meeting::kShuffleDown: return "__shfl_down_sync";
    case Meeting::kBallot: return "a vote";
    case Meeting::kGather: return "__reduce_sync";
    case Meeting::kMultiply: return "mma_16x8x16";
    case Meeting::kLoadMatrices: return "load_matrix_4";
  }
  return "?";
}

Gathering& join(Warp& warp, Meeting kind, unsigned mask, int variant, Place place) {
  for (Gathering& open : warp.gatherings) {
    if (open.mask != mask) continue;
    // Lanes may meet in __syncwarp from different places; anywhere else that is a kernel that lost its way.
    const bool together = kind == Meeting::kBarrier || (same(open.place, place) && open.variant == variant);
    if (open.kind == kind && together) return open;
    fail("the warp diverges: this lane is in %s at %s, lanes 0x%08x in %s at %s", name(kind), place_name(place).c_str(),
         open.arrived, name(open.kind), place_name(open.place).c_str());
  }
  warp.gatherings.push_back({kind, mask, variant, place, 0});
  return warp.gatherings.back();
}

}  // namespace

unsigned meet(Meeting kind, unsigned mask, int variant, Part& part, Place place) {
  Thread& self = *machine.current;
  Warp& warp = self.block->warps[self.warp];
  land_some(self);
  if ((mask >> self.lane & 1u) == 0) {
    fail("%s at %s: lane %u is not in the mask 0x%08x", name(kind), place_name(place).c_str(), self.lane, mask);
  }
  if ((kind == Meeting::kMultiply || kind == Meeting::kLoadMatrices) && (warp.existing & ~warp.ended) != 0xffffffffu) {
    fail("%s at %s needs all 32 lanes; 0x%08x are there", name(kind), place_name(place).c_str(),
         warp.existing & ~warp.ended);
  }
  Gathering& gathering = join(warp, kind, mask, variant, place);
  gathering.arrived |= 1u << self.lane;
  self.state = State::kMeeting, self.place = place, self.mask = mask, self.part = &part;
  if (complete(warp, gathering)) {
    const Gathering done = gathering;
    warp.gatherings.erase(warp.gatherings.begin() + (&gathering - warp.gatherings.data()));
    finish(warp, done);
  }
  wait_until_ready();
  return self.lanes;
}

// Lanes that have ended are not waited for.
void leave_warp(Thread& thread) {
  Warp& warp = thread.block->warps[thread.warp];
  warp.ended |= 1u << thread.lane;
  for (size_t i = 0; i < warp.gatherings.size();) {
    const Gathering open = warp.gatherings[i];
    if (!complete(warp, open)) {
      ++i;
      continue;
    }
    warp.gatherings.erase(warp.gatherings.begin() + static_cast<std::ptrdiff_t>(i));
    finish(warp, open);
  }
}

Votes ballot(unsigned mask, bool predicate, Place place) {
  Part part;
  part.value = predicate ? 1 : 0;
  const unsigned voters = meet(Meeting::kBallot, mask, 0, part, place);
  return {static_cast<unsigned>(part.result), voters};
}

void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bool half, Place place) {
  Part part;
  part.out = d, part.a = a, part.b = b;
  meet(Meeting::kMultiply, 0xffffffffu, half ? 1 : 0, part, place);
}

void load_matrices(unsigned (&out)[4], const void* row, bool transposed, Place place) {
  check_aligned(row, "load_matrix_4");
  Part part;
  part.out = out, part.a = row;
  meet(Meeting::kLoadMatrices, 0xffffffffu, transposed ? 1 : 0, part, place);
}

}  // namespace qb::emulator
