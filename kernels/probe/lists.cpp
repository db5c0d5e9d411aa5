// Attention over a list reads tiles of 4 KB that lie anywhere: what plain reads of them reach, and what it gains to keep
// the values of a page behind its keys. Not part of the library; docs/kernels.md has figures.
//
//   g++ -std=c++20 -O3 -march=native -fopenmp -Ikernels/include kernels/probe/lists.cpp -o lists && ./lists
#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "questbench/attend.h"

namespace {

using namespace questbench;
using List = std::vector<int32_t>;

constexpr int64_t kHeads = 32, kDim = 128, kSize = 16, kPages = 2048, kListed = 128;  // lists of 2,048 of 32k entries
constexpr int64_t kTile = kSize * kDim, kTexts = 64;
bf16* data;  // [kPages, kHeads, 2, kSize, kDim], or twice [kPages, kHeads, kSize, kDim]

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Apart {
  static const bf16* keys(int64_t page, int64_t head) { return data + (page * kHeads + head) * kTile; }
  static const bf16* values(int64_t page, int64_t head) { return keys(page, head) + kPages * kHeads * kTile; }
};
struct Beside {
  static const bf16* keys(int64_t page, int64_t head) { return data + (page * kHeads + head) * 2 * kTile; }
  static const bf16* values(int64_t page, int64_t head) { return keys(page, head) + kTile; }
};

void read_tile(const bf16* tile) {
  __m256i sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < kTile; i += 16)
    sum = _mm256_add_epi8(sum, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + i)));
  asm volatile("" : "+x"(sum));
}

template <typename Layout>
void read_list(const List& list, int64_t head) {
  for (const auto at : {Layout::keys, Layout::values})
    for (int64_t i = 0; i < kListed; ++i) {
      if (i + kTouch < kListed) __builtin_prefetch(at(list[i + kTouch], head));
      read_tile(at(list[i], head));
    }
}

// Keys, weights and values as attend.h has them, less the softmax.
template <typename Layout>
void attend_list(const List& list, int64_t head) {
  alignas(64) static thread_local float logits[kListed * kSize + kLanes];
  alignas(64) float sums[kDim] = {}, query[2 * kDim] = {};
  const auto next = [&](int64_t i, auto at) { return at(list[std::min(i + 1, kListed - 1)], head); };
  for (int64_t i = 0; i < kListed; ++i) {
    if (i + kTouch < kListed) __builtin_prefetch(Layout::keys(list[i + kTouch], head));
    dots<bf16, 0>(Layout::keys(list[i], head), kDim, kSize, query, kDim, 1, logits + i * kSize, kChunk,
                  next(i, Layout::keys), kDim);
  }
  for (int64_t i = 0; i < kListed * kSize; i += kLanes) store(logits + i, exp_of(load(logits + i)));
  for (int64_t i = 0; i < kListed; ++i) {
    if (i + kTouch < kListed) __builtin_prefetch(Layout::values(list[i + kTouch], head));
    add_values<bf16, 0>(Layout::values(list[i], head), kSize, logits + i * kSize, kChunk, 1, kDim, sums,
                        next(i, Layout::values));
  }
  asm volatile("" : : "r"(sums) : "memory");
}

// All keys of so many pages, then their values, heads side by side: the order of dense attention.
template <typename Layout>
void read_pages(int64_t first, int64_t count) {
  for (const auto at : {Layout::keys, Layout::values})
    for (int64_t page = first; page < first + count; ++page)
      for (int64_t head = 0; head < kHeads; ++head) read_tile(at(page, head));
}

template <typename F>
void time(const char* name, int64_t tiles, F&& call) {
  std::vector<double> taken;
  for (int64_t turn = 0; turn < 41; ++turn) {
    const double start = now();
    call(turn % kTexts);
    taken.push_back(now() - start);
  }
  std::sort(taken.begin(), taken.end());
  std::printf("%-60s %6.2f ms, %.1f GB/s\n", name, taken[20] * 1e3, tiles * kTile * sizeof(bf16) / taken[20] / 1e9);
}

}  // namespace

int main() {
  const int64_t bytes = 2 * kPages * kHeads * kTile * sizeof(bf16), huge = 2 << 20;
  char* room = static_cast<char*>(mmap(nullptr, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  room += huge - reinterpret_cast<uintptr_t>(room) % huge;
  madvise(room, bytes, MADV_HUGEPAGE);
  std::fill_n(room, bytes, 1);
  data = reinterpret_cast<bf16*>(room);
  std::vector<List> lists(kTexts * kHeads);
  std::mt19937 source(1);
  for (List& list : lists) {
    List every(kPages);
    std::iota(every.begin(), every.end(), 0);
    std::sample(every.begin(), every.end(), std::back_inserter(list), kListed, source);
  }
  const auto listed = [&](const char* name, auto one) {
    time(name, 2 * kHeads * kListed, [&](int64_t text) {
#pragma omp parallel for schedule(dynamic, 1)
      for (int64_t head = 0; head < kHeads; ++head) one(lists[text * kHeads + head], head);
    });
  };
  const auto dense = [&](const char* name, auto one) {
    time(name, 2 * kHeads * kPages, [&](int64_t) {
#pragma omp parallel for schedule(dynamic, 1)
      for (int64_t first = 0; first < kPages; first += 64) one(first, 64);
    });
  };
  for (int round = 0; round < 2; ++round) {
    listed("tiles of lists, read", read_list<Apart>);
    listed("tiles of lists, read, values behind keys", read_list<Beside>);
    listed("attention over lists", attend_list<Apart>);
    listed("attention over lists, values behind keys", attend_list<Beside>);
    dense("all pages, keys, then values, read", read_pages<Apart>);
    dense("all pages, keys, then values, read, values behind keys", read_pages<Beside>);
  }
}
