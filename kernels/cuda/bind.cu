// The only file that knows tensors: holds them to the contract and to what the kernels have, turns them into plain views, and
// puts the work on the stream that torch uses. Nothing here reads device memory or waits for it.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include "launches.h"
#include "questbench/contract.h"

namespace qb {
namespace {

using tvm::ffi::Optional;
using tvm::ffi::TensorView;
namespace contract = questbench::contract;

#if defined(QUESTBENCH_EMULATOR)
constexpr contract::Backend kBackend{"CUDA", kDLCPU, kMaxGroup};
#else
constexpr contract::Backend kBackend{"CUDA", kDLCUDA, kMaxGroup};
#endif
constexpr int64_t kCounters = 1 << 16;  // 32-bit words at the start of the workspace, zero between calls

template <class T>
T* data(const TensorView& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
T* data(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? static_cast<T*>(tensor.value().data_ptr()) : nullptr;
}

Stream stream_of(const TensorView& tensor) {
#if defined(QUESTBENCH_EMULATOR)
  return nullptr;
#else
  const DLDevice device = tensor.device();
  return static_cast<Stream>(TVMFFIEnvGetStream(device.device_type, device.device_id));
#endif
}

// Launches go to the device of their tensors, whichever is current.
class OnDevice {
 public:
  explicit OnDevice(const TensorView& tensor) {
#if !defined(QUESTBENCH_EMULATOR)
    cudaGetDevice(&before_);
    if (before_ != tensor.device().device_id) cudaSetDevice(tensor.device().device_id);
    now_ = tensor.device().device_id;
#endif
  }
  ~OnDevice() {
#if !defined(QUESTBENCH_EMULATOR)
    if (before_ != now_) cudaSetDevice(before_);
#endif
  }

 private:
  int before_ = 0, now_ = 0;
};

template <class F>
void with_type(const TensorView& tensor, F&& f) {
  const DLDataType type = tensor.dtype();
  if (type.code == kDLFloat && type.bits == 16) return f(half_t{});
  if (type.code == kDLBfloat && type.bits == 16) return f(bfloat16_t{});
  TVM_FFI_THROW(TypeError) << "the CUDA kernels store fp16 and bf16, not " << tvm::ffi::DLDataTypeToString(type);
}

void check_page_size(int64_t page_size) {
  if (page_size < 4 || page_size > 128 || (page_size & (page_size - 1)) != 0)
    TVM_FFI_THROW(ValueError) << "the CUDA kernels have page sizes 4, 8, ... 128, not " << page_size;
}

int shift_of(int64_t page_size) {
  int shift = 0;
  while ((1 << shift) < page_size) ++shift;
  return shift;
}
void check_head_dim(int64_t head_dim) {
  if (head_dim != 64 && head_dim != 128 && head_dim != 256)
    TVM_FFI_THROW(ValueError) << "the CUDA kernels have head dims 64, 128 and 256, not " << head_dim;
}

// Threads read and write 16 bytes at a time: elsewhere a device would fault, and its context be lost with it.
void check_aligned(const TensorView& tensor, const char* name) {
  if (reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 != 0)
    TVM_FFI_THROW(ValueError) << name << " does not begin at a multiple of 16 bytes";
}
template <class T>
Paged<T> paged(const Optional<TensorView>& k, const Optional<TensorView>& v, const Optional<TensorView>& bounds,
               const TensorView& table, const TensorView& lengths, int64_t kv_heads, int64_t page_size,
               int64_t head_dim) {
  check_head_dim(head_dim), check_page_size(page_size);
  if (k.has_value() && k.value().size(0) * kv_heads * page_size > (int64_t{1} << 32))
    TVM_FFI_THROW(ValueError) << "a pool of more than 2^32 entries";
  if (k.has_value()) check_aligned(k.value(), "k_pages");
  if (v.has_value()) check_aligned(v.value(), "v_pages");
  if (bounds.has_value()) check_aligned(bounds.value(), "bounds");
  Paged<T> out{};
  out.k = data<T>(k);
  out.v = data<T>(v);
  out.bounds = data<T>(bounds);
  out.by_channel = bounds.has_value() && bounds.value().ndim() == 5;
  out.table = data<int32_t>(table);
  out.table_stride = table.stride(0);
  out.lengths = data<int32_t>(lengths);
  out.rows = int(lengths.size(0));
  out.kv_heads = int(kv_heads);
  out.page_size = int(page_size);
  out.page_shift = shift_of(page_size);
  out.head_dim = int(head_dim);
  out.pages = int(table.size(1));
  return out;
}

template <class T>
Paged<T> paged(const TensorView& k, const TensorView& v, const Optional<TensorView>& bounds, const TensorView& table,
               const TensorView& lengths) {
  return paged<T>(Optional<TensorView>(k), Optional<TensorView>(v), bounds, table, lengths, k.size(1), k.size(2), k.size(3));
}

unsigned* counters(const TensorView& workspace, int64_t wanted) {
  if (wanted > kCounters || workspace.size(0) < kCounters)
    TVM_FFI_THROW(ValueError) << wanted << " lists at once; the workspace has counters for " << kCounters;
  return data<unsigned>(workspace);
}

void bind_append(TensorView k, TensorView v, TensorView k_pages, TensorView v_pages, Optional<TensorView> bounds,
                 TensorView page_table, TensorView lengths, Optional<TensorView> new_, TensorView workspace) {
  contract::append(kBackend, k, v, k_pages, v_pages, bounds, page_table, lengths, new_);
  const OnDevice guard(k_pages);
  with_type(k_pages, [&](auto kind) {
    using T = decltype(kind);
    AppendJob<T> job{};
    job.paged = paged<T>(k_pages, v_pages, bounds, page_table, lengths);
    job.k = data<T>(k);
    job.v = data<T>(v);
    job.k_row = k.stride(0), job.k_head = k.stride(1), job.k_entry = k.stride(2);
    job.v_row = v.stride(0), job.v_head = v.stride(1), job.v_entry = v.stride(2);
    job.incoming = int(k.size(2));
    job.fresh = data<int32_t>(new_);
    job.counters = counters(workspace, job.paged.rows);
    append(job, stream_of(k_pages));
  });
}

void bind_score(TensorView q, TensorView bounds, TensorView page_table, TensorView lengths, int64_t page_size,
                bool skip_newest, TensorView scores) {
  contract::score(kBackend, q, bounds, page_table, lengths, page_size, skip_newest, scores);
  const OnDevice guard(bounds);
  check_aligned(q, "q");
  with_type(bounds, [&](auto kind) {
    using T = decltype(kind);
    const bool by_channel = bounds.ndim() == 5;
    ScoreJob<T> job{};
    job.paged = paged<T>(Optional<TensorView>(), Optional<TensorView>(), Optional<TensorView>(bounds), page_table,
                         lengths, bounds.size(1), page_size, bounds.size(by_channel ? 2 : 3));
    job.q = data<T>(q);
    job.query_heads = int(q.size(1));
    job.skip_newest = skip_newest;
    job.scores = data<float>(scores);
    by_channel ? score_channels(job, stream_of(bounds)) : score_pages(job, stream_of(bounds));
  });
}

void bind_select(TensorView scores, TensorView lengths, int64_t page_size, int64_t count,
                 Optional<TensorView> row_counts, int64_t width, bool force_newest, int64_t merge, int64_t group,
                 double scale, TensorView pages, TensorView counts, TensorView keys) {
  contract::select(kBackend, scores, lengths, page_size, count, row_counts, width, merge, group, pages, counts);
  check_page_size(page_size);
  const OnDevice guard(scores);
  SelectJob job{};
  job.scores = data<float>(scores);
  job.lengths = data<int32_t>(lengths);
  job.rows = int(scores.size(0)), job.query_heads = int(scores.size(1)), job.pages = int(scores.size(2));
  job.page_shift = shift_of(page_size);
  job.count = int(count < INT32_MAX ? count : INT32_MAX);
  job.row_counts = data<int32_t>(row_counts);
  job.width = int(width);
  job.force_newest = force_newest;
  job.merge = int(merge);
  job.group = int(group);
  job.scale = float(scale);
  job.out = data<int32_t>(pages);
  job.counts = data<int32_t>(counts);
  job.keys = data<unsigned>(keys);
  select(job, stream_of(scores));
}

void bind_attend(TensorView q, TensorView k_pages, TensorView v_pages, TensorView page_table, TensorView lengths,
                 double scale, Optional<TensorView> pages, Optional<TensorView> tokens, Optional<TensorView> counts,
                 double softcap, Optional<TensorView> sinks, Optional<TensorView> prefix_q, int64_t prefix,
                 Optional<TensorView> mass, int64_t mass_mode, Optional<TensorView> visits, Optional<TensorView> lse,
                 TensorView out, TensorView workspace, int64_t splits, Optional<TensorView> logits) {
  contract::attend(kBackend, q, k_pages, v_pages, page_table, lengths, pages, tokens, counts, sinks, prefix_q, mass,
                   visits, lse, out);
  const Optional<TensorView>& listed = tokens.has_value() ? tokens : pages;
  const OnDevice guard(k_pages);
  const Stream stream = stream_of(k_pages);
  check_aligned(q, "q");
  if (prefix_q.has_value()) check_aligned(prefix_q.value(), "prefix_q");
  with_type(k_pages, [&](auto kind) {
    using T = decltype(kind);
    AttendJob<T> job{};
    job.paged = paged<T>(k_pages, v_pages, Optional<TensorView>(), page_table, lengths);
    job.q = data<T>(q);
    job.out = data<T>(out);
    job.query_heads = int(q.size(1));
    job.scale = float(scale);
    job.softcap = float(softcap);
    job.sinks = data<float>(sinks);
    job.prefix_q = prefix > 0 ? data<T>(prefix_q) : nullptr;
    job.prefix = int(prefix);
    job.lists = job.paged.kv_heads;
    if (listed.has_value()) {
      job.pages = data<int32_t>(listed);
      job.counts = data<int32_t>(counts);
      job.lists = int(listed.value().size(1));
      job.width = int(listed.value().size(2));
    }
    job.list_shift = tokens.has_value() ? 0 : job.paged.page_shift;
    job.lse = data<float>(lse);
    job.visits = data<int32_t>(visits);
    job.visit_slots = visits.has_value() ? int(visits.value().size(2)) : 0;
    if (splits < 1 || splits > kMaxSplits)
      TVM_FFI_THROW(ValueError) << splits << " splits: the CUDA kernels merge 1 to " << kMaxSplits;
    job.splits = int(splits);
    job.counters = counters(workspace, splits > 1 ? int64_t{job.paged.rows} * job.lists : 0);
    const int64_t queries = int64_t{job.paged.rows} * job.query_heads;
    job.partial = data<float>(workspace) + kCounters;
    const int64_t partials = splits > 1 ? queries * splits * (job.paged.head_dim + 2) : 0;
    job.partial_sums = job.partial + queries * splits * job.paged.head_dim;
    if (workspace.size(0) < kCounters + partials + 2 * queries)
      TVM_FFI_THROW(ValueError) << "a workspace of " << workspace.size(0) << " words is too small";
    const bool weigh = mass.has_value() && mass_mode != contract::kNoMass;
    if (weigh) {
      job.logits = data<float>(logits);
      job.logit_slots = int(logits.value().size(2));
      job.weights = job.partial + partials;
      if (listed.has_value()) forget_logits(job.logits, queries * job.logit_slots, stream);
    }
    attend(job, stream);
    if (!weigh) return;
    MassJob weighed{};
    weighed.logits = job.logits, weighed.weights = job.weights, weighed.lengths = job.paged.lengths;
    weighed.mass = data<float>(mass);
    weighed.rows = job.paged.rows, weighed.kv_heads = job.paged.kv_heads;
    weighed.group = job.query_heads / job.paged.kv_heads;
    weighed.logit_slots = job.logit_slots, weighed.mass_slots = int(mass.value().size(2));
    weighed.add = mass_mode == contract::kSumMass;
    qb::mass(weighed, stream);
  });
}

void bind_evict(TensorView k_pages, TensorView v_pages, TensorView page_table, TensorView lengths, TensorView positions,
                Optional<TensorView> mass, int64_t capacity, int64_t sinks, int64_t recent, bool shared,
                TensorView workspace) {
  contract::evict(kBackend, k_pages, v_pages, page_table, lengths, positions, mass, capacity, sinks, recent);
  const OnDevice guard(k_pages);
  with_type(k_pages, [&](auto kind) {
    using T = decltype(kind);
    EvictJob<T> job{};
    job.paged = paged<T>(k_pages, v_pages, Optional<TensorView>(), page_table, lengths);
    job.positions = data<int32_t>(positions);
    job.position_slots = int(positions.size(2));
    job.mass = data<float>(mass);
    job.mass_slots = mass.has_value() ? int(mass.value().size(2)) : 0;
    job.capacity = int(capacity), job.sinks = int(sinks), job.recent = int(recent), job.shared_victim = shared;
    job.counters = counters(workspace, job.paged.rows);
    evict(job, stream_of(k_pages));
  });
}

void bind_quantize(TensorView k_pages, TensorView page_table, TensorView lengths, TensorView codes, TensorView ranges,
                   int64_t incoming, Optional<TensorView> new_) {
  contract::quantize(kBackend, k_pages, page_table, lengths, codes, ranges, incoming, new_);
  const OnDevice guard(k_pages);
  check_aligned(codes, "codes");
  with_type(k_pages, [&](auto kind) {
    using T = decltype(kind);
    quantize(QuantizeJob<T>{paged<T>(k_pages, k_pages, Optional<TensorView>(), page_table, lengths), data<unsigned char>(codes),
                            data<float>(ranges), int(codes.size(2)), int(incoming), data<int32_t>(new_)},
             stream_of(k_pages));
  });
}

void bind_estimate(TensorView q, TensorView codes, TensorView ranges, TensorView lengths, int64_t page_size,
                   TensorView pages, TensorView counts, double scale, double softcap, TensorView logits) {
  contract::estimate(kBackend, q, codes, ranges, lengths, page_size, pages, counts, logits);
  check_head_dim(q.size(2)), check_page_size(page_size);
  const OnDevice guard(q);
  check_aligned(q, "q"), check_aligned(codes, "codes");
  with_type(q, [&](auto kind) {
    using T = decltype(kind);
    estimate(EstimateJob<T>{data<T>(q), data<unsigned char>(codes), data<float>(ranges), data<int32_t>(lengths),
                            int(q.size(0)), int(q.size(1)), int(codes.size(1)), int(codes.size(2)), shift_of(page_size),
                            data<int32_t>(pages), data<int32_t>(counts), int(pages.size(1)), int(pages.size(2)),
                            float(scale), float(softcap), data<float>(logits)},
             int(q.size(2)), stream_of(q));
  });
}

void bind_prune(TensorView logits, TensorView lengths, int64_t page_size, TensorView pages, TensorView counts, double p,
                TensorView tokens, TensorView token_counts, TensorView masses) {
  contract::prune(kBackend, logits, lengths, page_size, pages, counts, p, tokens, token_counts);
  check_page_size(page_size);
  const OnDevice guard(logits);
  prune(PruneJob{data<float>(logits), data<int32_t>(lengths), data<int32_t>(pages), data<int32_t>(counts),
                 int(logits.size(0)), int(logits.size(1)), int(pages.size(1)), int(pages.size(2)), shift_of(page_size), p,
                 data<int32_t>(tokens), data<int32_t>(token_counts), data<unsigned>(masses)},
        stream_of(logits));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(append, bind_append);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(score, bind_score);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(select, bind_select);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend, bind_attend);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(evict, bind_evict);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(quantize, bind_quantize);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(estimate, bind_estimate);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(prune, bind_prune);

}  // namespace qb
