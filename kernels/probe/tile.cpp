// What bounds attention on a processor: arithmetic per tile of 16 entries in the first-level cache, and reading from memory
// in one stream or in tiles of 4 KB that lie apart. Not part of the library; docs/kernels.md has figures.
//
//   g++ -std=c++20 -O3 -march=native -fopenmp -Wno-psabi -Ikernels/include kernels/probe/tile.cpp -o tile && ./tile
#include <omp.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdio>

#include "questbench/attend.h"

using namespace questbench;

namespace {

constexpr int kDim = 128, kRows = 16, kStride = kChunk + kLanes;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Least seconds of a call among many.
template <typename F>
double least(int tries, int calls, F f) {
  double best = 1e9;
  for (int i = 0; i < tries; ++i) {
    const double start = now();
    for (int k = 0; k < calls; ++k) {
      f();
      asm volatile("" ::: "memory");
    }
    best = std::min(best, (now() - start) / calls);
  }
  return best;
}

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
// What the products would take if the library kept the keys of a tile transposed, [head_dim, 16]: no sums over lanes, but
// every channel of every query is spread over a register.
template <int kQueries>
__attribute__((noinline)) void transposed(const bf16* tile, const float* q, float* out) {
  __m256 even[kQueries], odd[kQueries];
  for (int g = 0; g < kQueries; ++g) even[g] = odd[g] = _mm256_setzero_ps();
  for (int d = 0; d < kDim; ++d) {
    const Sixteen keys = widen<false>(tile + d * kRows, nullptr);
#pragma GCC unroll 4
    for (int g = 0; g < kQueries; ++g) {
      const __m256 x = held(_mm256_broadcast_ss(q + g * kDim + d));
      even[g] = _mm256_fmadd_ps(keys.a, x, even[g]);
      odd[g] = _mm256_fmadd_ps(keys.b, x, odd[g]);
    }
  }
  for (int g = 0; g < kQueries; ++g) {
    _mm256_storeu_ps(out + g * kStride, even[g]);
    _mm256_storeu_ps(out + g * kStride + kHalf, odd[g]);
  }
}

void transposed_keys() {
  alignas(64) static bf16 tile[kRows * kDim];
  alignas(64) static float q[4 * kDim], out[4 * kStride];
  for (bf16& x : tile) from_float(0.5f, &x);
  std::fill_n(q, 4 * kDim, 0.25f);
  const double one = least(2000, 20, [&] { transposed<1>(tile, q, out); });
  const double four = least(2000, 20, [&] { transposed<4>(tile, q, out); });
  std::printf("bf16, keys transposed: products of 1 query %.0f ns, of 4 queries %.0f ns\n", one * 1e9, four * 1e9);
}
#else
void transposed_keys() {}
#endif

template <typename T>
void arithmetic(const char* name) {
  alignas(64) static T tile[kRows * kDim], raw[kMaxGroup];
  alignas(64) static float p[8 * kStride], out[8 * kStride], acc[8 * kDim];
  alignas(64) static Query<T> q[8 * kDim];
  for (T& x : tile) from_float(0.5f, &x);
  for (T& x : raw) from_float(0.25f, &x);
  for (int g = 0; g < 8; ++g) put_query<T>(raw, kDim, q + g * kDim);
  std::fill_n(p, 8 * kStride, 0.001f);
  for (const int group : {1, 2, 4, 8}) {
    const double keys = least(2000, 20, [&] { dots<T, 0>(tile, kDim, kRows, q, kDim, group, out, kStride, tile, kDim); });
    const double values = least(2000, 20, [&] { add_values<T, 0>(tile, kRows, p, kStride, group, kDim, acc, tile); });
    std::printf("%s, %d queries: products %.0f ns, values %.0f ns\n", name, group, keys * 1e9, values * 1e9);
  }
  const double weights = least(2000, 1, [&] {
    Vec sum = {};
    for (int t = 0; t < kChunk; t += kLanes) {
      const Vec x = exp_of(load(p + t) - splat(1.0f));
      sum += x;
      store(out + t, x);
    }
    asm volatile("" : : "r"(sum_of(sum) > 0));
  });
  std::printf("%s: exponentials of 16 logits %.1f ns\n", name, weights * 1e9 * kLanes / kChunk);
}

// Reads everything in tiles of 4 KB, `apart` of them from one to the next, work items of 64 tiles as attention has them.
void reading(const char* base, int64_t bytes, int64_t apart) {
  const int64_t chunks = bytes / 4096 / apart / 64;
  const double seconds = least(7, 1, [&] {
    int64_t all = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : all)
    for (int64_t item = 0; item < apart * chunks; ++item)
      for (int64_t i = 0; i < 64; ++i) {
        const int64_t* tile = reinterpret_cast<const int64_t*>(base + ((item % chunks * 64 + i) * apart + item / chunks) * 4096);
        for (int w = 0; w < 512; ++w) all += tile[w];
      }
    asm volatile("" : : "r"(all));
  });
  std::printf("tiles of 4 KB, one of every %ld: %.1f GB/s\n", static_cast<long>(apart), bytes / seconds / 1e9);
}

}  // namespace

int main() {
  arithmetic<bf16>("bf16");
  transposed_keys();
  const int64_t bytes = int64_t{256} << 20, huge = 2 << 20;
  char* data = static_cast<char*>(mmap(nullptr, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  data += huge - reinterpret_cast<uintptr_t>(data) % huge;
  madvise(data, bytes, MADV_HUGEPAGE);
  std::fill_n(data, bytes, 1);
  for (const int64_t apart : {1, 8, 32}) reading(data, bytes, apart);
}
