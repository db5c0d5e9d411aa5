// out = sum_t p_t v_t,  p = softmax(cap(scale * q . k_t)) over the entries read, plus a sink logit without a value.
//
// A work item is one list of pages of one KV head, cut into chunks of kChunk entries, for all query heads that share
// the list. It reads its keys once, then its values once: 2 D elements per entry. Chunks are merged in order, so the
// result does not depend on which thread did what.
#pragma once

#include <algorithm>
#include <cmath>

#include "questbench/dots.h"
#include "questbench/paged.h"
#include "questbench/pairs.h"

namespace questbench {

constexpr int64_t kChunk = 1024;  // entries of a work item at most
constexpr int64_t kTouch = 8;
constexpr int64_t kWide = 16;  // lists side by side: the sums of more crowd the first-level cache
// Floats between the sums of two heads: whole blocks of 32 columns, the last one with room for what a row leaves over.
inline int64_t sums_width(int64_t head_dim) { return (head_dim + 31) / 32 * 32; }

template <typename T>
struct Attend {
  Paged<T> paged;
  const T* q;  // [rows, query_heads, head_dim]
  T* out;      // same
  int64_t query_heads;
  float scale, softcap;
  const float* sinks;    // [query_heads] or null
  const T* prefix_q;     // as q, or null
  int64_t prefix;        // slots that prefix_q is for
  const int32_t* pages;  // [rows, lists, width] or null: every page
  const int32_t* counts;  // [rows, lists]
  int64_t lists, width;
  bool tokens;  // `pages` lists slots, not pages
  float* lse;   // [rows, query_heads] or null
  float* mass;  // [rows, kv_heads, slots] or null
  bool add_mass;
  int32_t* visits;  // [rows, kv_heads, slots] or null
  int64_t mass_slots, visit_slots;
  Choice choice;

  // Scratch of the merge, by (row, list, chunk, head of the list).
  int64_t chunks;
  float* partial_out;  // [.., sums_width(head_dim)]
  float* partial_max;
  float* partial_sum;
  float* weights;  // [rows, lists, heads, chunks * kChunk], only with mass

  int64_t group() const { return query_heads / paged.kv_heads; }
  int64_t heads() const { return query_heads / lists; }  // query heads that share a list
  int64_t unit() const { return tokens ? 1 : paged.page_size; }  // entries of what a list holds
  // Entries of a work item: fewer where a few lists would leave threads without work. Neither rows nor threads count here,
  // since no bit may depend on them.
  int64_t chunk() const { return lists >= 4 ? kChunk : lists >= 2 ? kChunk / 2 : kChunk / 4; }
  int64_t chunk_pages() const { return std::max<int64_t>(chunk() / unit(), 1); }
  int64_t listed(int64_t row, int64_t list) const {
    return pages ? counts[row * lists + list] : paged.pages_of(row);
  }
  int64_t page(int64_t row, int64_t list, int64_t i) const {
    return pages ? pages[(row * lists + list) * width + i] : i;
  }
  int64_t items() const { return paged.rows * lists * chunks; }
  // Neighbouring lists that one work item takes where everything is read: as many as leave every thread a few items, and no
  // more than kWide while they can be halved.
  int64_t wide(int threads) const {
    int64_t out = choice.together && pages == nullptr ? lists : 1;
    while (out % 2 == 0 && (out > kWide || items() / out < 4 * threads)) out /= 2;
    return items() / out < 4 * threads ? 1 : out;
  }
};

// Columns of a tile for kHeads heads: 32 kPairs from its first on, then kRest vectors of which the last one ends where the
// row does (its first column is `tail`). Every row fetches kLines lines of the row of `next` at the same place.
template <typename T, int kHeads, int kPairs, int kRest, int kLines>
__attribute__((always_inline)) inline void add_block(const T* tile, int count, const float* p, int64_t p_stride,
                                                     int64_t n, int64_t tail, float* acc, const T* next) {
  constexpr int kVecs = 2 * kPairs + kRest;
  const int64_t width = sums_width(n);
  Vec sum[kHeads][kVecs];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) sum[h][i] = load(acc + h * width + i * kLanes);
  for (int t = 0; t < count; ++t) {
    if (kLines > 0) prefetch_row(next + t * n, kLines * 64);
    Vec row[kVecs];
#pragma GCC unroll 8
    for (int i = 0; i < kPairs; ++i) load_pair(tile + t * n + 32 * i, &row[2 * i], &row[2 * i + 1]);
    if constexpr (kRest > 1) row[kVecs - 2] = load(tile + t * n + 32 * kPairs);
    if constexpr (kRest > 0) row[kVecs - 1] = load(tile + t * n + tail);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const Vec weight = splat(p[h * p_stride + t]);
#pragma GCC unroll 8
      for (int i = 0; i < kVecs; ++i) sum[h][i] += weight * row[i];
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) store(acc + h * width + i * kLanes, sum[h][i]);
}

// The columns from d on, as many as kPairs and kRest say, for all heads, two at a time: whole rows in order suit the
// hardware's prefetcher.
template <typename T, int kPairs, int kRest>
inline void add_columns(const T* tile, int count, const float* p, int64_t p_stride, int heads, int64_t n, int64_t d,
                        float* acc, const T* next) {
  constexpr int kAll = ((kPairs * 32 + kRest * kLanes) * sizeof(T) + 63) / 64, kHalf = kAll / 2;
  const int64_t width = sums_width(n), tail = n - kLanes - d;
  tile += d, acc += d, next += d;
  if (heads == 1) return add_block<T, 1, kPairs, kRest, kAll>(tile, count, p, p_stride, n, tail, acc, next);
  if (heads < 4) {
    add_block<T, 2, kPairs, kRest, kAll>(tile, count, p, p_stride, n, tail, acc, next);
  } else {
    add_block<T, 2, kPairs, kRest, kHalf>(tile, count, p, p_stride, n, tail, acc, next);
    add_block<T, 2, kPairs, kRest, kAll - kHalf>(tile, count, p + 2 * p_stride, p_stride, n, tail, acc + 2 * width,
                                                 next + kHalf * (64 / sizeof(T)));
  }
  int g = heads < 4 ? 2 : 4;
  for (; g + 2 <= heads; g += 2)
    add_block<T, 2, kPairs, kRest, 0>(tile, count, p + g * p_stride, p_stride, n, tail, acc + g * width, next);
  if (g < heads) add_block<T, 1, kPairs, kRest, 0>(tile, count, p + g * p_stride, p_stride, n, tail, acc + g * width, next);
}

// acc[g][d] += sum_t p[g][t] v[t][d] over one tile of `count` rows. Rows of `acc` are sums_width(n) apart, and their
// columns are in order only after settle().
template <typename T, int D>
inline void add_values(const T* tile, int count, const float* p, int64_t p_stride, int heads, int64_t head_dim,
                       float* acc, const T* next, const Choice& choice = {}) {
  const int64_t n = D > 0 ? D : head_dim, width = sums_width(n);
  if constexpr (kBlocks) {
    weigh_blocks(tile, count, p, p_stride, heads, n, acc, width, next, choice);
  } else {
    if (next == nullptr) next = tile;
    if (n < kLanes) {
      for (int g = 0; g < heads; ++g)
        for (int64_t c = 0; c < n; ++c)
          for (int t = 0; t < count; ++t) acc[g * width + c] += p[g * p_stride + t] * to_float(tile[t * n + c]);
      return;
    }
    int64_t d = 0;
    if constexpr (kManyRegisters) {
      for (; d + 128 <= n; d += 128) add_columns<T, 4, 0>(tile, count, p, p_stride, heads, n, d, acc, next);
    } else if (heads == 1) {
      for (; d + 96 <= n || d + 64 == n; d += 64) add_columns<T, 2, 0>(tile, count, p, p_stride, 1, n, d, acc, next);
    }
    for (; d + 64 <= n; d += 32) add_columns<T, 1, 0>(tile, count, p, p_stride, heads, n, d, acc, next);
    // The last whole pair and what stands behind it in one go.
    const int64_t left = n - d;
    if (left > 48) return add_columns<T, 1, 2>(tile, count, p, p_stride, heads, n, d, acc, next);
    if (left > 32) return add_columns<T, 1, 1>(tile, count, p, p_stride, heads, n, d, acc, next);
    if (left == 32) return add_columns<T, 1, 0>(tile, count, p, p_stride, heads, n, d, acc, next);
    if (left > 16) return add_columns<T, 0, 2>(tile, count, p, p_stride, heads, n, d, acc, next);
    if (left > 0) add_columns<T, 0, 1>(tile, count, p, p_stride, heads, n, d, acc, next);
  }
}

// Brings one head's sums of add_values in order.
template <typename T>
void settle(const T* values, int64_t n, float* acc) {
  if constexpr (kBlocks) {
    settle_blocks<T>(n, acc);
  } else {
    int64_t d = 0;
    for (; d + 32 <= n; d += 32) untangle(values, acc + d);
    const int64_t rest = n % kLanes, first = n - rest;
    if (rest > 0 && first > 0)
      for (int64_t c = 0; c < rest; ++c) acc[first + c] = acc[first + kLanes - rest + c];
  }
}

// The keys of tile `i` of a work item of `lists` lists, or null if there is none: what its thread reads first.
template <typename T>
const T* first_keys(const Attend<T>& job, int64_t item, int64_t lists, int64_t i) {
  if (item * lists >= job.items()) return nullptr;
  const int64_t blocks = job.lists / lists;
  const int64_t list = item / job.chunks % blocks * lists, row = item / job.chunks / blocks;
  const int64_t at = item % job.chunks * job.chunk_pages() + i;
  if (at >= job.listed(row, list)) return nullptr;
  return job.paged.k + job.paged.tile(row, job.page(row, list, at), list * job.heads() / job.group());
}

// Fetches one line of the tile that comes kTouch tiles later, keys first, then values. Tiles of a list lie anywhere: the
// page walk for each takes longer than a tile is ahead of its use, and this starts it early.
template <typename T>
__attribute__((always_inline)) inline void touch(const Attend<T>& job, int64_t row, int64_t list, int64_t head,
                                                 int64_t first, int64_t last, int64_t i) {
  i += kTouch;
  if (i >= 2 * last - first) return;
  const T* base = i < last ? job.paged.k : job.paged.v;
  __builtin_prefetch(base + job.paged.tile(row, job.page(row, list, i < last ? i : i - last + first), head), 0, 3);
}

// Up to kLanes rows of `stored`, of the tokens that a list names from the i-th on, side by side in `tile`; the rows behind
// them are fetched. Returns how many.
template <typename T>
int gather(const Attend<T>& job, const T* stored, int64_t row, int64_t list, int64_t head, int64_t i, int64_t last,
           T* tile) {
  const Paged<T>& paged = job.paged;
  const int64_t dim = paged.head_dim, bytes = dim * static_cast<int64_t>(sizeof(T));
  const int64_t ahead = std::min<int64_t>(i + 2 * kLanes, last);
  for (int64_t t = i + kLanes; t < ahead; ++t)
    prefetch_row(stored + paged.entry(row, job.page(row, list, t), head), bytes);
  const int count = static_cast<int>(std::min<int64_t>(kLanes, last - i));
  for (int t = 0; t < count; ++t)
    std::copy_n(stored + paged.entry(row, job.page(row, list, i + t), head), dim, tile + t * dim);
  return count;
}

// Products of the queries of a list with `count` keys of slots below the prefix, which have queries of their own.
template <typename T>
void shift_logits(const Attend<T>& job, int64_t first_head, const T* tile, int64_t count, float* logits) {
  const int64_t dim = job.paged.head_dim;
  for (int64_t g = 0; g < job.heads(); ++g)
    for (int64_t s = 0; s < count; ++s) {
      float product = 0;
      for (int64_t d = 0; d < dim; ++d)
        product += to_float(job.prefix_q[(first_head + g) * dim + d]) * to_float(tile[s * dim + d]);
      logits[g * (kChunk + kLanes) + s] = product;
    }
}

// The products of a chunk's listed tokens.
template <typename T, int D>
void token_logits(const Attend<T>& job, int64_t row, int64_t list, int64_t head, int64_t first, int64_t last,
                  const Query<T>* query, T* tile, float* logits) {
  const int64_t dim = job.paged.head_dim, heads = job.heads();
  for (int64_t i = first; i < last; i += kLanes, logits += kLanes) {
    const int count = gather(job, job.paged.k, row, list, head, i, last, tile);
    dots<T, D>(tile, dim, count, query, dim, static_cast<int>(heads), logits, kChunk + kLanes, tile, dim);
    for (int t = 0; t < count; ++t) {
      const int64_t slot = job.page(row, list, i + t);
      if (job.prefix_q != nullptr && slot < job.prefix)
        shift_logits(job, row * job.query_heads + list * heads, tile + t * dim, 1, logits + t);
      if (job.visits == nullptr) continue;
#pragma omp atomic
      job.visits[(row * job.paged.kv_heads + head) * job.visit_slots + slot] += static_cast<int32_t>(heads);
    }
  }
}

// One chunk of one list, or of `lists` neighbouring ones that read everything: keys, softmax, values. Tiles of
// neighbouring KV heads lie side by side, and read page by page they are one stream, which the hardware's prefetcher
// follows; it stops where 4 KB end and another tile comes. `stride` later comes, most likely, the item this thread does
// next.
template <typename T, int D>
void attend_chunk(const Attend<T>& job, int64_t item, int64_t stride, int64_t lists, float* logits, T* rounded,
                  Query<T>* query, T* gathered) {
  const Paged<T>& paged = job.paged;
  const int64_t blocks = job.lists / lists;
  const int64_t chunk = item % job.chunks, list = item / job.chunks % blocks * lists, row = item / job.chunks / blocks;
  const int64_t heads = job.heads(), size = paged.page_size, dim = paged.head_dim, width = sums_width(dim);
  const int64_t head = list * heads / job.group(), first_head = row * job.query_heads + list * heads;
  const int64_t first = chunk * job.chunk_pages();
  const int64_t last = std::min(first + job.chunk_pages(), job.listed(row, list));
  const int64_t shared = lists * heads;  // query heads of this item
  const auto part = [&](int64_t h) { return (((row * job.lists + list + h / heads) * job.chunks) + chunk) * heads + h % heads; };
  if (first >= last) {
    for (int64_t l = 0; l < lists; ++l) {
      std::fill_n(job.partial_max + part(l * heads), heads, -std::numeric_limits<float>::infinity());
      std::fill_n(job.partial_sum + part(l * heads), heads, 0.0f);
    }
    return;
  }
  for (int64_t h = 0; h < shared; ++h) put_query<T>(job.q + (first_head + h) * dim, dim, query + h * query_width(dim));
  const Choice& choice = job.choice;
  const bool wide = lists > 1, fetches = choice.ahead > 0;
  const int64_t distance = wide ? std::min(choice.ahead, lists) : choice.ahead;
  const int block = static_cast<int>(std::min<int64_t>(size, kLanes));
  // The tile `distance` after that of page i and list l, in the order in which they are read.
  const auto ahead_of = [&](int64_t i, int64_t l, const T* stored) {
    const bool wraps = l + distance >= lists;
    const int64_t next = wide ? i + wraps : i + distance, beside = wide ? l + distance - wraps * lists : l;
    return fetches && next < last ? stored + paged.tile(row, job.page(row, list, next), head + beside) : nullptr;
  };
  int64_t entries = 0;
  if (job.tokens) {
    token_logits<T, D>(job, row, list, head, first, last, query, gathered, logits);
    entries = last - first;
  }
  for (int64_t i = first; i < last && !job.tokens; ++i) {
    const int64_t page = job.page(row, list, i), valid = paged.valid(row, page);
    if (job.pages != nullptr) touch(job, row, list, head, first, last, i);
    for (int64_t l = 0; l < lists; ++l) {
      const T* tile = paged.k + paged.tile(row, page, head + l);
      const T* following = ahead_of(i, l, paged.k);
      if (following == nullptr && fetches)
        following = paged.v + paged.tile(row, job.page(row, list, std::min(wide ? first : first + i + distance - last, last - 1)), head);
      float* own = logits + l * heads * (kChunk + kLanes) + entries;
      for (int64_t t = 0; t < valid; t += block, own += block) {
        const int count = static_cast<int>(std::min<int64_t>(block, valid - t));
        // Rows of 16 logits overlap: what lies beyond `count` is written over by the next block.
        dots<T, D>(tile + t * dim, dim, count, query + l * heads * query_width(dim), dim, static_cast<int>(heads), own,
                   kChunk + kLanes, fetches ? following + t * dim : nullptr, dim, choice);
        if (job.prefix_q != nullptr && page * size + t < job.prefix) {
          const int64_t shifted = std::min<int64_t>(count, job.prefix - page * size - t);
          shift_logits(job, first_head + l * heads, tile + t * dim, shifted, own);
        }
      }
      if (job.visits != nullptr) {
        int32_t* seen = job.visits + (row * paged.kv_heads + head + l) * job.visit_slots + page * size;
        for (int64_t t = 0; t < valid; ++t) {
#pragma omp atomic
          seen[t] += static_cast<int32_t>(heads);
        }
      }
    }
    entries += valid;
  }
  const float none = -std::numeric_limits<float>::infinity();
  for (int64_t h = 0; h < shared; ++h) {
    float* own = logits + h * (kChunk + kLanes);
    for (int64_t t = 0; t < entries; ++t) own[t] *= job.scale;
    if (job.softcap > 0)
      for (int64_t t = 0; t < entries; ++t) own[t] = job.softcap * std::tanh(own[t] / job.softcap);
    const int64_t padded = (entries + kLanes - 1) / kLanes * kLanes;
    std::fill(own + entries, own + padded, none);
    Vec tops = splat(none), sums = {};
    for (int64_t t = 0; t < padded; t += kLanes) tops = max_of(load(own + t), tops);
    const float top = max_of(tops);
    const Vec base = splat(top == none ? 0.0f : top);  // a chunk of -inf alone weighs nothing
    for (int64_t t = 0; t < padded; t += kLanes) {
      const Vec p = exp_of(load(own + t) - base);
      sums += p;
      store(own + t, p);
      if constexpr (kPairs<T>) store_weights(rounded + h * (kChunk + kLanes) + t, p);
    }
    job.partial_max[part(h)] = top;
    job.partial_sum[part(h)] = sum_of(sums);
    if (job.weights != nullptr)
      std::copy_n(own, entries, job.weights + (row * job.query_heads + list * heads + h) * job.chunks * kChunk + chunk * kChunk);
    std::fill_n(job.partial_out + part(h) * width, width, 0.0f);
  }
  // One head alone waits for memory either way, and keeps its weights as they are.
  const bool in_pairs = kPairs<T> && heads > 1 && choice.pairs;
  const auto weigh = [&](const T* tile, int64_t count, int64_t l, const T* following) {
    const int rows = static_cast<int>(count), sharing = static_cast<int>(heads);
    const int64_t at = l * heads * (kChunk + kLanes) + entries;
    float* acc = job.partial_out + part(l * heads) * width;
    if (in_pairs) {
      if constexpr (kPairs<T>)
        add_values_in_pairs(tile, rows, rounded + at, kChunk + kLanes, sharing, dim, acc, width, following);
    } else {
      add_values<T, D>(tile, rows, logits + at, kChunk + kLanes, sharing, dim, acc, following, choice);
    }
  };
  entries = 0;
  for (int64_t i = first; i < last && job.tokens; i += kLanes) {
    const int count = gather(job, paged.v, row, list, head, i, last, gathered);
    weigh(gathered, count, 0, gathered);
    entries += count;
  }
  for (int64_t i = first; i < last && !job.tokens; ++i) {
    const int64_t page = job.page(row, list, i), valid = paged.valid(row, page);
    if (job.pages != nullptr) touch(job, row, list, head, first, last, i + last - first);
    for (int64_t l = 0; l < lists; ++l) {
      const T* following = ahead_of(i, l, paged.v);
      if (following == nullptr && fetches)
        following = first_keys(job, item + stride, lists, wide ? 0 : i + distance - last);
      weigh(paged.v + paged.tile(row, page, head + l), valid, l, following);
    }
    entries += valid;
  }
  for (int64_t h = 0; h < shared; ++h) {
    float* acc = job.partial_out + part(h) * width;
    if (!in_pairs) {
      settle(paged.v, dim, acc);
      continue;
    }
    if constexpr (kPairs<T>)
      for (int64_t d = 0; d < width; d += 32) untangle_pairs(acc + d);
  }
}

// Merge the chunks of one query head, in order; then its share of the mass can be normalised.
template <typename T>
void merge_chunks(const Attend<T>& job, int64_t row, int64_t query_head, float* factors) {
  const int64_t heads = job.heads(), dim = job.paged.head_dim, list = query_head / heads, g = query_head % heads;
  const int64_t width = sums_width(dim);
  const int64_t used = (job.listed(row, list) + job.chunk_pages() - 1) / job.chunk_pages();
  T* out = job.out + (row * job.query_heads + query_head) * dim;
  const float none = -std::numeric_limits<float>::infinity();
  float top = job.sinks ? job.sinks[query_head] : none;
  float* lse = job.lse ? job.lse + row * job.query_heads + query_head : nullptr;
  if (used == 0) {
    for (int64_t d = 0; d < dim; ++d) from_float(0.0f, out + d);
    if (lse) *lse = top;
    return;
  }
  const int64_t base = (row * job.lists + list) * job.chunks;
  for (int64_t c = 0; c < used; ++c) top = std::max(top, job.partial_max[(base + c) * heads + g]);
  float total = job.sinks ? std::exp(job.sinks[query_head] - top) : 0.0f;
  for (int64_t c = 0; c < used; ++c) {
    factors[c] = std::exp(job.partial_max[(base + c) * heads + g] - top);
    total += factors[c] * job.partial_sum[(base + c) * heads + g];
  }
  if (lse) {
    float sum = total;
    if (top == none) {  // nothing but -inf: no weight, unless there is a NaN
      sum = 0;
      for (int64_t c = 0; c < used; ++c) sum += job.partial_sum[(base + c) * heads + g];
    }
    *lse = (top == none ? 0.0f : top) + std::log(sum);
  }
  for (int64_t c = 0; c < used; ++c) factors[c] /= total;
  for (int64_t d = 0; d < dim; ++d) {
    float sum = 0;
    for (int64_t c = 0; c < used; ++c) sum += factors[c] * job.partial_out[((base + c) * heads + g) * width + d];
    from_float(sum, out + d);
  }
}

// Probabilities of one KV head's query heads, summed over them, into the mass of each slot read.
template <typename T>
void write_mass(const Attend<T>& job, int64_t row, int64_t head, float* factors) {
  const Paged<T>& paged = job.paged;
  float* mass = job.mass + (row * paged.kv_heads + head) * job.mass_slots;
  if (!job.add_mass) std::fill_n(mass, paged.lengths[row], 0.0f);
  for (int64_t query_head = head * job.group(); query_head < (head + 1) * job.group(); ++query_head) {
    const int64_t list = query_head / job.heads(), g = query_head % job.heads();
    merge_chunks(job, row, query_head, factors);
    const float* own = job.weights + ((row * job.lists + list) * job.heads() + g) * job.chunks * kChunk;
    int64_t entry = 0;
    for (int64_t i = 0; i < job.listed(row, list); ++i) {
      if (i % job.chunk_pages() == 0) entry = i / job.chunk_pages() * kChunk;
      const int64_t page = job.page(row, list, i), valid = job.tokens ? 1 : paged.valid(row, page);
      for (int64_t t = 0; t < valid; ++t, ++entry)
        mass[page * job.unit() + t] += own[entry] * factors[i / job.chunk_pages()];
    }
  }
}

}  // namespace questbench
