// Scores by channel read one of the two bounds of every channel, in runs of so many pages: what longer runs would gain.
// Not part of the library; docs/kernels.md has figures.
//
//   g++ -std=c++20 -O3 -march=native -fopenmp kernels/probe/runs.cpp -o runs && ./runs
#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

constexpr int64_t kHeads = 32, kDim = 128, kPages = 2048;  // 32k entries in pages of 16
constexpr int64_t kBytes = kHeads * kDim * 2 * kPages * 2, kCopies = 8;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// One head's bounds [dim, 2, run] in bf16, of which `low` says for each channel whether it is the minimum that counts;
// every run is fetched `ahead` channels ahead.
void add_runs(const char* block, const bool* low, int64_t run, int64_t ahead, float* sum) {
  const __m256 q = _mm256_set1_ps(0.5f);
  for (int64_t d = 0; d < kDim; ++d) {
    const char* row = block + (2 * d + low[d]) * run * 2;
    if (const int64_t then = d + ahead; ahead > 0 && then < kDim) {
      const char* next = block + (2 * then + low[then]) * run * 2;
      for (int64_t at = 0; at < run * 2; at += 64) __builtin_prefetch(next + at);
    }
    for (int64_t at = 0; at < run * 2; at += 32) {
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + at));
      float* out = sum + at / 2;
      _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), q, _mm256_loadu_ps(out)));
      _mm256_storeu_ps(out + 8, _mm256_fmadd_ps(_mm256_castsi256_ps(both), q, _mm256_loadu_ps(out + 8)));
    }
  }
}

}  // namespace

int main() {
  const int64_t huge = 2 << 20;
  char* data = static_cast<char*>(
      mmap(nullptr, kBytes * kCopies + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  data += huge - reinterpret_cast<uintptr_t>(data) % huge;
  madvise(data, kBytes * kCopies, MADV_HUGEPAGE);
  std::fill_n(data, kBytes * kCopies, 0);
  bool low[kHeads * kDim];
  uint32_t state = 1;
  for (bool& one : low) one = ((state = state * 1664525u + 1013904223u) >> 31) != 0;
  for (const int64_t ahead : {0, 1, 4, 16, 40})
    for (const int64_t run : {int64_t{64}, int64_t{128}, int64_t{256}, int64_t{512}, kPages}) {
      std::vector<double> taken;
      for (int64_t i = 0; i < 3 * kCopies; ++i) {
        const char* bounds = data + i % kCopies * kBytes;  // never what the caches still hold
        const double start = now();
#pragma omp parallel for schedule(dynamic, 1)
        for (int64_t item = 0; item < kPages / run * kHeads; ++item) {
          alignas(64) float sum[kPages];
          std::fill_n(sum, run, 0.0f);
          add_runs(bounds + item * kDim * 2 * run * 2, low + item % kHeads * kDim, run, ahead, sum);
          asm volatile("" : : "r"(sum) : "memory");
        }
        taken.push_back(now() - start);
      }
      std::sort(taken.begin(), taken.end());
      const double median = taken[taken.size() / 2];
      std::printf("runs of %4ld pages, fetched %2ld channels ahead: %.2f ms, %.1f GB/s\n", static_cast<long>(run),
                  static_cast<long>(ahead), median * 1e3, kBytes / 2 / median / 1e9);
    }
}
