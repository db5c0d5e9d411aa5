// How the order of reading decides the rate: rows of a matrix one after the other, or a piece of each of several rows in
// turn, as a register block takes them. Not part of the library; docs/kernels.md has figures.
//
//   g++ -std=c++20 -O3 -march=native -fopenmp -Wno-psabi kernels/probe/rows.cpp -o rows && ./rows
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

typedef uint64_t Half __attribute__((vector_size(32)));  // of a cache line: what registers hold

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Reads kRows rows of `bytes` each, 64 bytes of every row in turn; each fetches its own row `ahead` bytes ahead.
template <int kRows>
__attribute__((noinline)) Half read_rows(const char* rows, int64_t bytes, int64_t ahead) {
  Half sum[kRows] = {};
  for (int64_t at = 0; at < bytes; at += 64)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const char* line = rows + r * bytes + at;
      if (ahead > 0) __builtin_prefetch(line + ahead);
      sum[r] ^= *reinterpret_cast<const Half*>(line) ^ *reinterpret_cast<const Half*>(line + 32);
    }
  for (int r = 1; r < kRows; ++r) sum[0] ^= sum[r];
  return sum[0];
}

template <int kRows>
void report(const char* data, int64_t size, int64_t bytes, int64_t ahead) {
  const int64_t block = bytes * kRows, item = std::max<int64_t>(65536 / block, 1) * block;
  std::vector<double> taken;
  for (int i = 0; i < 9; ++i) {
    const double start = now();
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t from = 0; from < size / block * block; from += item)
      for (int64_t at = from; at + block <= std::min(from + item, size); at += block) {
        const Half sum = read_rows<kRows>(data + at, bytes, ahead);
        asm volatile("" : : "m"(sum));
      }
    taken.push_back(now() - start);
  }
  std::sort(taken.begin(), taken.end());
  std::printf("rows of %5ld bytes, %d in turn, fetched %4ld ahead: %.1f GB/s\n", static_cast<long>(bytes), kRows,
              static_cast<long>(ahead), size / taken[4] / 1e9);
}

}  // namespace

int main() {
  const int64_t size = int64_t{128} << 20, huge = 2 << 20;
  char* data = static_cast<char*>(
      mmap(nullptr, size + 2 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  data += huge - reinterpret_cast<uintptr_t>(data) % huge;
  madvise(data, size, MADV_HUGEPAGE);
  std::fill_n(data, size, 1);
  for (const int64_t bytes : {256, 1280, 2560, 8192})
    for (const int64_t ahead : {0, 1024}) {
      report<1>(data, size, bytes, ahead);
      report<2>(data, size, bytes, ahead);
      report<4>(data, size, bytes, ahead);
      report<8>(data, size, bytes, ahead);
    }
}
