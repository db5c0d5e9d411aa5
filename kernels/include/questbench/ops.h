// The ops as the binding calls them: plain views in, one parallel region per call.
#pragma once

#include "questbench/attend.h"
#include "questbench/codes.h"
#include "questbench/prune.h"

namespace questbench {

template <typename T>
struct Append {
  Paged<T> paged;
  const T* k;  // [rows, kv_heads, incoming, head_dim] with strides
  const T* v;
  int64_t k_row, k_head, k_entry, v_row, v_head, v_entry;
  int64_t incoming;
  const int32_t* fresh;  // [rows] or null: how many of the last `incoming` count
  int threads;
};
template <typename T>
void append(const Append<T>& job);

template <typename T>
struct Score {
  Paged<T> paged;
  const T* q;  // [rows, query_heads, head_dim]
  int64_t query_heads, pages;
  bool skip_newest;
  float* scores;  // [rows, query_heads, pages]
  int threads;
};
template <typename T>
void score(const Score<T>& job);

struct Select {
  const float* scores;  // [rows, query_heads, pages]
  const int32_t* lengths;
  int64_t rows, query_heads, pages, page_size;
  int64_t count;               // pages to read, or
  const int32_t* row_counts;   // [rows], where not null
  int64_t width;
  bool force_newest;
  Merge merge;
  int group;
  float scale;
  int32_t* out;     // [rows, lists, width]
  int32_t* counts;  // [rows, lists]
  int threads;

  int64_t lists() const { return merge == Merge::kNone ? query_heads : query_heads / group; }
};
void select(const Select& job);
void select_items(const Select& job);  // the same inside a parallel region of the caller

template <typename T>
void attend(Attend<T>& job, int threads);

// Score, select and attend in one parallel region.
template <typename T>
void attend_top(const Score<T>& score, const Select& select, Attend<T>& attend);

template <typename T>
struct Evict {
  Paged<T> paged;
  int32_t* positions;  // [rows, kv_heads, slots]
  float* mass;         // same, or null
  int64_t position_slots, mass_slots, capacity, sinks, recent;
  bool shared;
  int threads;
};
template <typename T>
void evict(const Evict<T>& job);

template <typename T>
struct Quantize {
  Paged<T> paged;
  uint8_t* codes;  // [rows, kv_heads, slots, code_bytes(head_dim)]
  float* ranges;   // [rows, kv_heads, slots, 2]: step and least value of each entry
  int64_t slots, incoming;
  const int32_t* fresh;  // [rows] or null: how many of the last `incoming` entries count
  int threads;
};
template <typename T>
void quantize(const Quantize<T>& job);

template <typename T>
struct Estimate {
  const T* q;            // [rows, query_heads, head_dim]
  const uint8_t* codes;  // [rows, kv_heads, slots, code_bytes(head_dim)]
  const float* ranges;   // [rows, kv_heads, slots, 2]
  const int32_t* lengths;
  int64_t rows, query_heads, kv_heads, head_dim, slots, page_size;
  const int32_t* pages;   // [rows, lists, width]
  const int32_t* counts;  // [rows, lists]
  int64_t lists, width;
  float scale, softcap;
  float* logits;  // [rows, query_heads, width * page_size], -inf past the end of a list
  int threads;

  int64_t heads() const { return query_heads / lists; }
};
template <typename T>
void estimate(const Estimate<T>& job);

struct Prune {
  const float* logits;  // [rows, query_heads, width * page_size]
  const int32_t* lengths;
  const int32_t* pages;   // [rows, lists, width]
  const int32_t* counts;  // [rows, lists]
  int64_t rows, query_heads, lists, width, page_size;
  double p;
  int32_t* tokens;         // [rows, lists, width * page_size]
  int32_t* token_counts;   // [rows, lists]
  int threads;
};
void prune(const Prune& job);

constexpr int64_t kSmall = 1 << 16;  // bytes below which a second thread costs more than it brings
inline int threads_for(int threads, int64_t bytes) { return bytes < kSmall ? 1 : threads; }

// Calls f.template operator()<D>() with the compile-time head dim that fits, 0 for any other. Without AVX-512 the code for
// widths that are known at run time only is as fast, and takes a fifth of the time to compile.
template <typename F>
void with_head_dim(int64_t head_dim, F&& f) {
#if !defined(__AVX512F__)
  (void)head_dim;
  return f.template operator()<0>();
#else
  switch (head_dim) {
    case 64: return f.template operator()<64>();
    case 96: return f.template operator()<96>();
    case 128: return f.template operator()<128>();
    case 256: return f.template operator()<256>();
    default: return f.template operator()<0>();
  }
#endif
}

// Scratch that grows and stays, one per calling thread.
template <typename T>
T* scratch(int slot, int64_t count) {
  thread_local std::vector<unsigned char> buffers[10];
  std::vector<unsigned char>& buffer = buffers[slot];
  const size_t bytes = count * sizeof(T) + 64;
  if (buffer.size() < bytes) buffer.resize(bytes);
  const uintptr_t address = reinterpret_cast<uintptr_t>(buffer.data());
  return reinterpret_cast<T*>((address + 63) / 64 * 64);
}

}  // namespace questbench
