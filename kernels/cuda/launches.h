// The ops as the binding calls them: plain views in, work put on a stream, nothing waited for.
#pragma once

#include "paged.h"

namespace qb {

template <class T>
struct AppendJob {
  Paged<T> paged;
  const T* k;  // [rows, kv_heads, incoming, head_dim] with strides in elements
  const T* v;
  int64_t k_row, k_head, k_entry, v_row, v_head, v_entry;
  int incoming;
  const int32_t* fresh;  // [rows] or null: how many of the last `incoming` count
  unsigned* counters;    // [rows], zero between calls
};
template <class T>
void append(const AppendJob<T>& job, Stream stream);

template <class T>
struct ScoreJob {
  Paged<T> paged;
  const T* q;  // [rows, query_heads, head_dim]
  int query_heads, skip_newest;
  float* scores;  // [rows, query_heads, pages]
};
template <class T>
void score_pages(const ScoreJob<T>& job, Stream stream);
template <class T>
void score_channels(const ScoreJob<T>& job, Stream stream);

enum Merge { kNone = 0, kSumSoftmax = 1, kMax = 2 };

struct SelectJob {
  const float* scores;  // [rows, query_heads, pages]
  const int32_t* lengths;
  int rows, query_heads, pages, page_shift;
  int count;                  // pages to read, or
  const int32_t* row_counts;  // [rows], where not null
  int width, force_newest, merge, group;
  float scale;
  int32_t* out;      // [rows, lists, width]
  int32_t* counts;   // [rows, lists]
  unsigned* keys;    // [rows, lists, pages], scratch where they do not fit shared memory
};
void select(const SelectJob& job, Stream stream);

template <class T>
struct AttendJob {
  Paged<T> paged;
  const T* q;  // [rows, query_heads, head_dim]
  T* out;      // same
  int query_heads;
  float scale, softcap;
  const float* sinks;     // [query_heads] or null
  const T* prefix_q;      // as q, or null
  int prefix;             // slots that prefix_q is for
  const int32_t* pages;   // [rows, lists, width] or null: every page
  int list_shift;         // binary logarithm of the entries of what a list holds: page_shift, or 0 for tokens
  const int32_t* counts;  // [rows, lists]
  int lists, width;
  int32_t* visits;  // [rows, kv_heads, visit_slots] or null
  int visit_slots;
  float* logits;  // [rows, query_heads, logit_slots] in powers of two, for the mass (-inf: not read); or null
  int logit_slots;
  int splits;
  unsigned* counters;  // [rows, lists], zero between calls
  float* partial;      // [rows, lists, splits, heads, head_dim]: values of each split, aligned to 16 bytes
  float* partial_sums; // [rows, lists, splits, heads, 2]: its greatest logit and its sum
  float* lse;          // [rows, query_heads]: natural logarithm of the sum that the output was divided by; or null
  float* weights;      // [rows, query_heads, 2]: maximum and sum that normalise the logits; or null
};
template <class T>
void attend(const AttendJob<T>& job, Stream stream);

struct MassJob {
  const float* logits;   // [rows, query_heads, logit_slots]
  const float* weights;  // [rows, query_heads, 2]
  const int32_t* lengths;
  float* mass;  // [rows, kv_heads, mass_slots]
  int rows, kv_heads, group, logit_slots, mass_slots, add;
};
void mass(const MassJob& job, Stream stream);
// Logits of entries that nothing reads.
void forget_logits(float* logits, int64_t count, Stream stream);

template <class T>
struct QuantizeJob {
  Paged<T> paged;
  unsigned char* codes;  // [rows, kv_heads, slots, head_dim / 2]
  float* ranges;         // [rows, kv_heads, slots, 2]: step and least value of each entry
  int slots, incoming;
  const int32_t* fresh;  // [rows] or null: how many of the last `incoming` entries count
};
template <class T>
void quantize(const QuantizeJob<T>& job, Stream stream);

template <class T>
struct EstimateJob {
  const T* q;                  // [rows, query_heads, head_dim]
  const unsigned char* codes;  // [rows, kv_heads, slots, head_dim / 2]
  const float* ranges;         // [rows, kv_heads, slots, 2]
  const int32_t* lengths;
  int rows, query_heads, kv_heads, slots, page_shift;
  const int32_t* pages;   // [rows, lists, width]
  const int32_t* counts;  // [rows, lists]
  int lists, width;
  float scale, softcap;
  float* logits;  // [rows, query_heads, width * page_size], -inf past the end of a list
};
template <class T>
void estimate(const EstimateJob<T>& job, int head_dim, Stream stream);

struct PruneJob {
  const float* logits;  // [rows, query_heads, width * page_size]
  const int32_t* lengths;
  const int32_t* pages;   // [rows, lists, width]
  const int32_t* counts;  // [rows, lists]
  int rows, query_heads, lists, width, page_shift;
  double p;
  int32_t* tokens;        // [rows, lists, width * page_size]
  int32_t* token_counts;  // [rows, lists]
  unsigned* masses;       // as tokens, scratch where they do not fit shared memory
};
void prune(const PruneJob& job, Stream stream);

template <class T>
struct EvictJob {
  Paged<T> paged;
  int32_t* positions;  // [rows, kv_heads, position_slots]
  float* mass;         // [rows, kv_heads, mass_slots] or null
  int position_slots, mass_slots, capacity, sinks, recent, shared_victim;
  unsigned* counters;  // [rows], zero between calls
};
template <class T>
void evict(const EvictJob<T>& job, Stream stream);

}  // namespace qb
