// Binds the ops: holds their tensors to the contract, turns them into plain views and dispatches on the storage type.
// Only this file, bind_between.cpp and tensors.h know the tensors of the binding.
#include <tvm/ffi/function.h>

#include "questbench/linear.h"
#include "questbench/ops.h"
#include "tensors.h"

namespace questbench {
namespace {

template <typename T>
Paged<T> paged(const TensorView& k, const TensorView& v, const Optional<TensorView>& bounds, const TensorView& table,
               const TensorView& lengths) {
  Paged<T> out;
  out.k = data<T>(k);
  out.v = data<T>(v);
  out.bounds = data<T>(bounds);
  out.by_channel = bounds.has_value() && bounds.value().ndim() == 5;
  out.table = data<int32_t>(table);
  out.table_stride = table.stride(0);
  out.lengths = data<int32_t>(lengths);
  out.rows = lengths.size(0);
  out.kv_heads = k.size(1);
  out.page_size = k.size(2);
  out.head_dim = k.size(3);
  if (out.page_size > kChunk)
    TVM_FFI_THROW(ValueError) << "the CPU kernels have pages of 1 to " << kChunk << " entries, not " << out.page_size;
  return out;
}

void bind_append(TensorView k, TensorView v, TensorView k_pages, TensorView v_pages, Optional<TensorView> bounds,
                 TensorView page_table, TensorView lengths, Optional<TensorView> new_, int64_t threads) {
  contract::append(kBackend, k, v, k_pages, v_pages, bounds, page_table, lengths, new_);
  with_type(k_pages, [&]<typename T>(T) {
    Append<T> job;
    job.paged = paged<T>(k_pages, v_pages, bounds, page_table, lengths);
    job.k = data<T>(k);
    job.v = data<T>(v);
    job.k_row = k.stride(0), job.k_head = k.stride(1), job.k_entry = k.stride(2);
    job.v_row = v.stride(0), job.v_head = v.stride(1), job.v_entry = v.stride(2);
    job.incoming = k.size(2);
    job.fresh = data<int32_t>(new_);
    job.threads = static_cast<int>(threads);
    append(job);
  });
}

template <typename T>
Score<T> score_job(const TensorView& q, const TensorView& bounds, const TensorView& table, const TensorView& lengths,
                   int64_t page_size, bool skip_newest, float* scores, int64_t threads) {
  Score<T> job;
  const bool by_channel = bounds.ndim() == 5;
  job.paged = {nullptr, nullptr, data<T>(bounds), by_channel, data<int32_t>(table), table.stride(0), data<int32_t>(lengths),
               lengths.size(0), bounds.size(1), page_size, bounds.size(by_channel ? 2 : 3)};
  job.q = data<T>(q);
  job.query_heads = q.size(1);
  job.pages = table.size(1);
  job.skip_newest = skip_newest;
  job.scores = scores;
  job.threads = static_cast<int>(threads);
  return job;
}

void bind_score(TensorView q, TensorView bounds, TensorView page_table, TensorView lengths, int64_t page_size,
                bool skip_newest, TensorView scores, int64_t threads) {
  contract::score(kBackend, q, bounds, page_table, lengths, page_size, skip_newest, scores);
  with_type(bounds, [&]<typename T>(T) {
    score(score_job<T>(q, bounds, page_table, lengths, page_size, skip_newest, data<float>(scores), threads));
  });
}

void set_rule(Select& job, int64_t count, const Optional<TensorView>& row_counts, bool force_newest, int64_t merge,
              int64_t group, double scale, int64_t threads) {
  job.count = count;
  job.row_counts = data<int32_t>(row_counts);
  job.force_newest = force_newest;
  job.merge = static_cast<Merge>(merge);
  job.group = static_cast<int>(group);
  job.scale = static_cast<float>(scale);
  job.threads = static_cast<int>(threads);
}

// Lists must have room for what each row asks for; how much that is stands in memory that is at hand here.
void check_row_counts(const TensorView& lengths, const Optional<TensorView>& row_counts, int64_t page_size, int64_t width) {
  if (!row_counts.has_value()) return;
  for (int64_t row = 0; row < lengths.size(0); ++row) {
    const int64_t pages = (data<int32_t>(lengths)[row] + page_size - 1) / page_size;
    const int64_t asked = data<int32_t>(row_counts)[row];
    if (std::min(pages, asked) > width)
      TVM_FFI_THROW(ValueError) << "lists of " << width << " pages cannot hold the " << asked << " that row " << row
                                << " asks for";
  }
}

void bind_select(TensorView scores, TensorView lengths, int64_t page_size, int64_t count,
                 Optional<TensorView> row_counts, int64_t width, bool force_newest, int64_t merge, int64_t group,
                 double scale, TensorView pages, TensorView counts, int64_t threads) {
  contract::select(kBackend, scores, lengths, page_size, count, row_counts, width, merge, group, pages, counts);
  check_row_counts(lengths, row_counts, page_size, width);
  Select job{};
  job.scores = data<float>(scores);
  job.lengths = data<int32_t>(lengths);
  job.rows = scores.size(0), job.query_heads = scores.size(1), job.pages = scores.size(2);
  job.page_size = page_size;
  job.width = width;
  job.out = data<int32_t>(pages);
  job.counts = data<int32_t>(counts);
  set_rule(job, count, row_counts, force_newest, merge, group, scale, threads);
  select(job);
}

template <typename T>
Attend<T> attend_job(const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
                     const TensorView& page_table, const TensorView& lengths, double scale, double softcap,
                     const Optional<TensorView>& sinks, const Optional<TensorView>& visits, const TensorView& out) {
  Attend<T> job{};
  job.paged = paged<T>(k_pages, v_pages, Optional<TensorView>(), page_table, lengths);
  job.q = data<T>(q);
  job.out = data<T>(out);
  job.query_heads = q.size(1);
  job.scale = static_cast<float>(scale);
  job.softcap = static_cast<float>(softcap);
  job.sinks = data<float>(sinks);
  job.lists = job.paged.kv_heads;
  job.visits = data<int32_t>(visits);
  job.visit_slots = visits.has_value() ? visits.value().size(2) : 0;
  return job;
}

void bind_attend(TensorView q, TensorView k_pages, TensorView v_pages, TensorView page_table, TensorView lengths,
                 double scale, Optional<TensorView> pages, Optional<TensorView> tokens, Optional<TensorView> counts,
                 double softcap, Optional<TensorView> sinks, Optional<TensorView> prefix_q, int64_t prefix,
                 Optional<TensorView> mass, int64_t mass_mode, Optional<TensorView> visits, Optional<TensorView> lse,
                 TensorView out, int64_t threads) {
  contract::attend(kBackend, q, k_pages, v_pages, page_table, lengths, pages, tokens, counts, sinks, prefix_q, mass,
                   visits, lse, out);
  const Optional<TensorView>& listed = tokens.has_value() ? tokens : pages;
  with_type(k_pages, [&]<typename T>(T) {
    Attend<T> job = attend_job<T>(q, k_pages, v_pages, page_table, lengths, scale, softcap, sinks, visits, out);
    if (listed.has_value()) {
      job.pages = data<int32_t>(listed);
      job.counts = data<int32_t>(counts);
      job.lists = listed.value().size(1);
      job.width = listed.value().size(2);
    }
    job.tokens = tokens.has_value();
    job.lse = data<float>(lse);
    job.prefix_q = data<T>(prefix_q);
    job.prefix = prefix;
    job.mass = mass_mode != contract::kNoMass ? data<float>(mass) : nullptr;
    job.mass_slots = mass.has_value() ? mass.value().size(2) : 0;
    job.add_mass = mass_mode == contract::kSumMass;
    attend(job, static_cast<int>(threads));
  });
}

void bind_attend_top(TensorView q, TensorView k_pages, TensorView v_pages, TensorView bounds, TensorView page_table,
                     TensorView lengths, double scale, int64_t count, Optional<TensorView> row_counts, int64_t width,
                     bool force_newest, int64_t merge, double softcap, Optional<TensorView> sinks,
                     Optional<TensorView> visits, TensorView out, int64_t threads) {
  contract::attend_top(kBackend, q, k_pages, v_pages, bounds, page_table, lengths, count, row_counts, width,
                       force_newest, merge, sinks, visits, out);
  check_row_counts(lengths, row_counts, k_pages.size(2), width);
  with_type(k_pages, [&]<typename T>(T) {
    Attend<T> attending = attend_job<T>(q, k_pages, v_pages, page_table, lengths, scale, softcap, sinks, visits, out);
    const Paged<T>& pages = attending.paged;
    // What passes between the stages stays in scratch memory: new memory in every step would cost page faults.
    Select selecting{};
    selecting.lengths = pages.lengths;
    selecting.rows = pages.rows, selecting.query_heads = q.size(1), selecting.pages = page_table.size(1);
    selecting.page_size = pages.page_size;
    selecting.width = width;
    set_rule(selecting, count, row_counts, force_newest, merge, q.size(1) / pages.kv_heads, scale, threads);
    float* scores = scratch<float>(5, pages.rows * q.size(1) * page_table.size(1));
    selecting.scores = scores;
    selecting.out = scratch<int32_t>(6, pages.rows * selecting.lists() * width);
    selecting.counts = scratch<int32_t>(7, pages.rows * selecting.lists());
    attending.pages = selecting.out, attending.counts = selecting.counts;
    attending.lists = selecting.lists(), attending.width = width;
    const Score<T> scoring =
        score_job<T>(q, bounds, page_table, lengths, pages.page_size, force_newest, scores, threads);
    attend_top(scoring, selecting, attending);
  });
}

void bind_evict(TensorView k_pages, TensorView v_pages, TensorView page_table, TensorView lengths, TensorView positions,
                Optional<TensorView> mass, int64_t capacity, int64_t sinks, int64_t recent, bool shared,
                int64_t threads) {
  contract::evict(kBackend, k_pages, v_pages, page_table, lengths, positions, mass, capacity, sinks, recent);
  with_type(k_pages, [&]<typename T>(T) {
    Evict<T> job;
    job.paged = paged<T>(k_pages, v_pages, Optional<TensorView>(), page_table, lengths);
    job.positions = data<int32_t>(positions);
    job.position_slots = positions.size(2);
    job.mass = data<float>(mass);
    job.mass_slots = mass.has_value() ? mass.value().size(2) : 0;
    job.capacity = capacity, job.sinks = sinks, job.recent = recent, job.shared = shared;
    job.threads = static_cast<int>(threads);
    evict(job);
  });
}

void bind_quantize(TensorView k_pages, TensorView page_table, TensorView lengths, TensorView codes, TensorView ranges,
                   int64_t incoming, Optional<TensorView> new_, int64_t threads) {
  contract::quantize(kBackend, k_pages, page_table, lengths, codes, ranges, incoming, new_);
  with_type(k_pages, [&]<typename T>(T) {
    quantize(Quantize<T>{paged<T>(k_pages, k_pages, Optional<TensorView>(), page_table, lengths), data<uint8_t>(codes),
                         data<float>(ranges), codes.size(2), incoming, data<int32_t>(new_), static_cast<int>(threads)});
  });
}

void bind_estimate(TensorView q, TensorView codes, TensorView ranges, TensorView lengths, int64_t page_size,
                   TensorView pages, TensorView counts, double scale, double softcap, TensorView logits, int64_t threads) {
  contract::estimate(kBackend, q, codes, ranges, lengths, page_size, pages, counts, logits);
  with_type(q, [&]<typename T>(T) {
    estimate(Estimate<T>{data<T>(q), data<uint8_t>(codes), data<float>(ranges), data<int32_t>(lengths), q.size(0),
                         q.size(1), codes.size(1), q.size(2), codes.size(2), page_size, data<int32_t>(pages),
                         data<int32_t>(counts), pages.size(1), pages.size(2), static_cast<float>(scale),
                         static_cast<float>(softcap), data<float>(logits), static_cast<int>(threads)});
  });
}

void bind_prune(TensorView logits, TensorView lengths, int64_t page_size, TensorView pages, TensorView counts, double p,
                TensorView tokens, TensorView token_counts, int64_t threads) {
  contract::prune(kBackend, logits, lengths, page_size, pages, counts, p, tokens, token_counts);
  prune(Prune{data<float>(logits), data<int32_t>(lengths), data<int32_t>(pages), data<int32_t>(counts), logits.size(0),
              logits.size(1), pages.size(1), pages.size(2), page_size, p, data<int32_t>(tokens),
              data<int32_t>(token_counts), static_cast<int>(threads)});
}

void bind_linear(TensorView x, TensorView weight, Optional<TensorView> bias, TensorView y, int64_t threads) {
  contract::linear(kBackend, x, weight, bias, y);
  with_type(weight, [&]<typename T>(T) {
    Linear<T> job{data<T>(weight), data<T>(bias), data<T>(x), data<T>(y), y.stride(0), x.size(0), weight.size(1),
                  weight.size(0), static_cast<int>(threads)};
    linear(job);
  });
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(append, bind_append);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(score, bind_score);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(select, bind_select);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend, bind_attend);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend_top, bind_attend_top);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(evict, bind_evict);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantize, bind_quantize);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(estimate, bind_estimate);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(prune, bind_prune);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear, bind_linear);

}  // namespace questbench
