// What the ops may assume of the tensors they are called with: declared once, checked by the binding of every compiled
// backend before a kernel sees a pointer. Types, shapes, strides and devices: nothing here reads a tensor's memory.
//
// A shape is a word of one letter per dimension. A letter has the same size wherever it stands in one call:
//   B rows, Q query heads, K KV heads, D channels, S slots per page, N physical pages, P logical pages of a row,
//   n new entries, H lists, W pages of a list, E their slots, T slots of a row, L lanes of bounds by channel, G blocks of them, C bytes of
//   codes, I inputs, O outputs;
//   a digit is itself, * is any size.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/optional.h>

#include <sstream>
#include <string>

namespace questbench::contract {

using tvm::ffi::Optional;
using tvm::ffi::TensorView;

// `mass_mode` of attend: the places of its words.
constexpr int64_t kNoMass = 0, kLastMass = 1, kSumMass = 2;

enum class Type { kStored, kFloat, kInt, kByte };  // the type of keys and values, fp32, int32, uint8
enum class Layout { kContiguous, kLastContiguous };  // the other dimensions strided as they like

struct Backend {
  const char* name;
  DLDeviceType device;
  int64_t max_group;  // query heads per KV head
};

class Contract {
 public:
  // `first` decides the device, and the stored type where the op has one.
  Contract(const Backend& backend, const char* op, const TensorView& first)
      : backend_(backend), op_(op), stored_(first.dtype()), device_(first.device()) {
    for (int64_t& size : sizes_) size = -1;
    sizes_['L' - 'A'] = 64;
    if (device_.device_type != backend.device) {
      std::ostringstream text;
      text << "the tensors are not on a device of the " << backend.name << " backend";
      refuse(text.str());
    }
  }

  void tensor(const char* name, const TensorView& given, Type type, const char* shape,
              Layout layout = Layout::kContiguous) {
    const DLDevice device = given.device();
    if (device.device_type != device_.device_type || device.device_id != device_.device_id) refuse_device(name);
    const DLDataType is = given.dtype();
    const DLDataType wanted = type == Type::kStored  ? stored_
                              : type == Type::kFloat ? DLDataType{kDLFloat, 32, 1}
                              : type == Type::kInt   ? DLDataType{kDLInt, 32, 1}
                                                     : DLDataType{kDLUInt, 8, 1};
    if (is.code != wanted.code || is.bits != wanted.bits || is.lanes != 1) refuse_type(name, is, wanted, type);
    int axis = 0;
    for (; shape[axis] != 0; ++axis)
      if (axis >= given.ndim() || !fits(shape[axis], given.size(axis))) refuse_shape(name, given, shape);
    if (axis != given.ndim()) refuse_shape(name, given, shape);
    int64_t stride = 1;
    while (--axis >= 0) {
      if (given.size(axis) == 0) break;
      if (given.size(axis) > 1 && given.stride(axis) != stride) refuse_strides(name, layout);
      if (layout == Layout::kLastContiguous) break;
      stride *= given.size(axis);
    }
  }
  void tensor(const char* name, const Optional<TensorView>& given, Type type, const char* shape,
              Layout layout = Layout::kContiguous) {
    if (given.has_value()) tensor(name, given.value(), type, shape, layout);
  }

  void pages(const TensorView& k, const TensorView& v) {
    tensor("k_pages", k, Type::kStored, "NKSD");
    tensor("v_pages", v, Type::kStored, "NKSD");
    at_least("KV heads", size('K'), 1), at_least("slots per page", size('S'), 1), at_least("channels", size('D'), 1);
  }
  void bounds(const TensorView& given) {
    if (given.ndim() == 5) {
      if (size('N') >= 0) sizes_['G' - 'A'] = (size('N') + 63) / 64;
      tensor("bounds", given, Type::kStored, "GKD2L");
    } else {
      tensor("bounds", given, Type::kStored, "NK2D");
    }
    at_least("KV heads", size('K'), 1), at_least("channels", size('D'), 1);
  }
  // Bounds by channel have none for an open page.
  void scored(const TensorView& given, bool skip_newest) {
    bounds(given);
    if (given.ndim() == 5 && !skip_newest)
      refuse("bounds by channel have none for an open page: the newest page cannot be scored");
  }
  // Codes of keys by slot, 32 channels in 16 bytes; the head dim is known.
  void codes(const TensorView& codes, const TensorView& ranges) {
    sizes_['C' - 'A'] = (size('D') + 31) / 32 * 16;
    tensor("codes", codes, Type::kByte, "BKTC");
    tensor("ranges", ranges, Type::kFloat, "BKT2");
  }
  // Lists of pages that must be there, for all query heads of the call.
  void lists(const TensorView& pages, const TensorView& counts, int64_t page_size) {
    tensor("pages", pages, Type::kInt, "BHW");
    tensor("counts", counts, Type::kInt, "BH");
    at_least("page_size", page_size, 1), at_least("lists", size('H'), 1);
    sizes_['E' - 'A'] = size('W') * page_size;
  }
  void rows(const TensorView& table, const TensorView& lengths) {
    tensor("lengths", lengths, Type::kInt, "B");
    tensor("page_table", table, Type::kInt, "BP", Layout::kLastContiguous);
  }
  void queries(const TensorView& q) {
    tensor("q", q, Type::kStored, "BQD");
    group(size('Q'), size('K'));
  }
  void group(int64_t query_heads, int64_t kv_heads) {
    if (query_heads >= 1 && kv_heads >= 1 && query_heads % kv_heads == 0 && query_heads / kv_heads <= backend_.max_group)
      return;
    std::ostringstream text;
    text << query_heads << " query heads over " << kv_heads << " KV heads: the " << backend_.name
         << " kernels have groups of 1 to " << backend_.max_group;
    refuse(text.str());
  }
  // `heads` query heads become lists of up to `width` of `pages` pages.
  void rule(int64_t count, const Optional<TensorView>& row_counts, int64_t width, int64_t merge, int64_t pages) {
    tensor("count", row_counts, Type::kInt, "B");
    at_least("count", count, 0), at_least("width", width, 0);
    if (merge < 0 || merge > 2) refuse("no such merge");
    if (row_counts.has_value() || width >= (count < pages ? count : pages)) return;
    std::ostringstream text;
    text << "lists of " << width << " pages cannot hold " << count << " of " << pages;
    refuse(text.str());
  }
  void at_least(const char* what, int64_t value, int64_t least) {
    if (value >= least) return;
    std::ostringstream text;
    text << what << " " << value << ", not at least " << least;
    refuse(text.str());
  }
  [[noreturn]] void refuse(const std::string& why) const { TVM_FFI_THROW(ValueError) << op_ << ": " << why; }
  int64_t size(char letter) const { return sizes_[letter - 'A']; }

 private:
  bool fits(char letter, int64_t size) {
    if (letter == '*') return true;
    if (letter >= '0' && letter <= '9') return size == letter - '0';
    int64_t& known = sizes_[letter - 'A'];
    if (known < 0) known = size;
    return known == size;
  }
  [[noreturn]] void refuse_device(const char* name) const {
    refuse(std::string(name) + " is on another device than the other tensors");
  }
  [[noreturn]] void refuse_type(const char* name, DLDataType is, DLDataType wanted, Type type) const {
    const auto text = [](DLDataType kind) { return std::string(tvm::ffi::DLDataTypeToString(kind)); };
    if (type == Type::kStored)
      TVM_FFI_THROW(TypeError) << op_ << ": " << name << " is " << text(is) << " where " << text(wanted)
                               << " is stored (torch.autocast makes such mixtures: give all tensors one type)";
    TVM_FFI_THROW(TypeError) << op_ << ": " << name << " is " << text(is) << ", not " << text(wanted);
  }
  [[noreturn]] void refuse_shape(const char* name, const TensorView& given, const char* shape) const {
    std::ostringstream text;
    text << name << " has shape [";
    for (int axis = 0; axis < given.ndim(); ++axis) text << (axis > 0 ? ", " : "") << given.size(axis);
    text << "], not [";
    for (int axis = 0; shape[axis] != 0; ++axis) {
      const char letter = shape[axis];
      text << (axis > 0 ? ", " : "") << (letter == 'Q' ? "Hq" : letter == 'K' ? "Hk" : std::string(1, letter));
      if (letter >= 'A' && size(letter) >= 0) text << " = " << size(letter);
    }
    text << "]";
    refuse(text.str());
  }
  [[noreturn]] void refuse_strides(const char* name, Layout layout) const {
    refuse(std::string(name) + " is strided: " +
           (layout == Layout::kContiguous ? "it must be contiguous" : "its last dimension must be contiguous"));
  }

  const Backend& backend_;
  const char* op_;
  DLDataType stored_;
  DLDevice device_;
  int64_t sizes_['z' - 'A' + 1];
};

inline void append(const Backend& backend, const TensorView& k, const TensorView& v, const TensorView& k_pages,
                   const TensorView& v_pages, const Optional<TensorView>& bounds, const TensorView& table,
                   const TensorView& lengths, const Optional<TensorView>& fresh) {
  Contract is(backend, "append", k_pages);
  is.pages(k_pages, v_pages);
  if (bounds.has_value()) is.bounds(bounds.value());
  is.rows(table, lengths);
  is.tensor("k", k, Type::kStored, "BKnD", Layout::kLastContiguous);
  is.tensor("v", v, Type::kStored, "BKnD", Layout::kLastContiguous);
  is.tensor("new", fresh, Type::kInt, "B");
}

inline void score(const Backend& backend, const TensorView& q, const TensorView& bounds, const TensorView& table,
                  const TensorView& lengths, int64_t page_size, bool skip_newest, const TensorView& scores) {
  Contract is(backend, "score", bounds);
  is.scored(bounds, skip_newest);
  is.rows(table, lengths);
  is.queries(q);
  is.at_least("page_size", page_size, 1);
  is.tensor("scores", scores, Type::kFloat, "BQP");
}

inline void select(const Backend& backend, const TensorView& scores, const TensorView& lengths, int64_t page_size,
                   int64_t count, const Optional<TensorView>& row_counts, int64_t width, int64_t merge,
                   int64_t group, const TensorView& pages, const TensorView& counts) {
  Contract is(backend, "select", scores);
  is.tensor("scores", scores, Type::kFloat, "BQP");
  is.tensor("lengths", lengths, Type::kInt, "B");
  is.at_least("page_size", page_size, 1), is.at_least("group", group, 1);
  if (is.size('Q') % group != 0) is.refuse(std::to_string(is.size('Q')) + " query heads in groups of " + std::to_string(group));
  is.group(group, 1);
  is.tensor("pages", pages, Type::kInt, "BHW");
  if (is.size('H') * (merge == 0 ? 1 : group) != is.size('Q')) is.refuse("the lists are not one per group of query heads");
  is.tensor("counts", counts, Type::kInt, "BH");
  is.rule(count, row_counts, width, merge, is.size('P'));
}

inline void attend(const Backend& backend, const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
                   const TensorView& table, const TensorView& lengths, const Optional<TensorView>& pages,
                   const Optional<TensorView>& tokens, const Optional<TensorView>& counts,
                   const Optional<TensorView>& sinks, const Optional<TensorView>& prefix_q,
                   const Optional<TensorView>& mass, const Optional<TensorView>& visits,
                   const Optional<TensorView>& lse, const TensorView& out) {
  Contract is(backend, "attend", k_pages);
  is.pages(k_pages, v_pages);
  is.rows(table, lengths);
  is.queries(q);
  is.tensor("pages", pages, Type::kInt, "BHW");
  if (pages.has_value() && tokens.has_value()) is.refuse("lists are of pages or of tokens, not of both");
  is.tensor("tokens", tokens, Type::kInt, "BHW");
  is.tensor("counts", counts, Type::kInt, "BH");
  const bool listed = pages.has_value() || tokens.has_value();
  if (listed != counts.has_value()) is.refuse("pages or tokens come with their counts, and counts with pages or tokens");
  if (listed && is.size('H') != is.size('K') && is.size('H') != is.size('Q'))
    is.refuse("lists are per KV head or per query head, not " + std::to_string(is.size('H')) + " of them");
  is.tensor("sinks", sinks, Type::kFloat, "Q");
  is.tensor("prefix_q", prefix_q, Type::kStored, "BQD");
  is.tensor("mass", mass, Type::kFloat, "BK*");
  is.tensor("visits", visits, Type::kInt, "BK*");
  is.tensor("lse", lse, Type::kFloat, "BQ");
  is.tensor("out", out, Type::kStored, "BQD");
}

inline void attend_top(const Backend& backend, const TensorView& q, const TensorView& k_pages,
                       const TensorView& v_pages, const TensorView& bounds, const TensorView& table,
                       const TensorView& lengths, int64_t count, const Optional<TensorView>& row_counts, int64_t width,
                       bool force_newest, int64_t merge, const Optional<TensorView>& sinks,
                       const Optional<TensorView>& visits, const TensorView& out) {
  Contract is(backend, "attend_top", k_pages);
  is.pages(k_pages, v_pages);
  is.scored(bounds, force_newest);
  is.rows(table, lengths);
  is.queries(q);
  is.rule(count, row_counts, width, merge, is.size('P'));
  is.tensor("sinks", sinks, Type::kFloat, "Q");
  is.tensor("visits", visits, Type::kInt, "BK*");
  is.tensor("out", out, Type::kStored, "BQD");
}

inline void evict(const Backend& backend, const TensorView& k_pages, const TensorView& v_pages,
                  const TensorView& table, const TensorView& lengths, const TensorView& positions,
                  const Optional<TensorView>& mass, int64_t capacity, int64_t sinks, int64_t recent) {
  Contract is(backend, "evict", k_pages);
  is.pages(k_pages, v_pages);
  is.rows(table, lengths);
  is.tensor("positions", positions, Type::kInt, "BK*");
  is.tensor("mass", mass, Type::kFloat, "BK*");
  is.at_least("capacity", capacity, 0), is.at_least("sinks", sinks, 0), is.at_least("recent", recent, 0);
}

inline void quantize(const Backend& backend, const TensorView& k_pages, const TensorView& table,
                     const TensorView& lengths, const TensorView& codes, const TensorView& ranges, int64_t incoming,
                     const Optional<TensorView>& fresh) {
  Contract is(backend, "quantize", k_pages);
  is.pages(k_pages, k_pages);
  is.rows(table, lengths);
  is.codes(codes, ranges);
  is.at_least("incoming", incoming, 0);
  is.tensor("new", fresh, Type::kInt, "B");
}

inline void estimate(const Backend& backend, const TensorView& q, const TensorView& codes, const TensorView& ranges,
                     const TensorView& lengths, int64_t page_size, const TensorView& pages, const TensorView& counts,
                     const TensorView& logits) {
  Contract is(backend, "estimate", q);
  is.tensor("q", q, Type::kStored, "BQD");
  is.at_least("channels", is.size('D'), 1);
  is.codes(codes, ranges);
  is.group(is.size('Q'), is.size('K'));
  is.tensor("lengths", lengths, Type::kInt, "B");
  is.lists(pages, counts, page_size);
  if (is.size('H') != is.size('K') && is.size('H') != is.size('Q'))
    is.refuse("lists are per KV head or per query head, not " + std::to_string(is.size('H')) + " of them");
  is.tensor("logits", logits, Type::kFloat, "BQE");
}

inline void prune(const Backend& backend, const TensorView& logits, const TensorView& lengths, int64_t page_size,
                  const TensorView& pages, const TensorView& counts, double p, const TensorView& tokens,
                  const TensorView& token_counts) {
  Contract is(backend, "prune", logits);
  is.tensor("logits", logits, Type::kFloat, "BQ*");
  is.tensor("lengths", lengths, Type::kInt, "B");
  is.lists(pages, counts, page_size);
  is.group(is.size('Q'), is.size('H'));
  is.tensor("logits", logits, Type::kFloat, "BQE");
  if (!(p >= 0 && p <= 1)) is.refuse("p is a share of the mass, 0 to 1");
  is.tensor("tokens", tokens, Type::kInt, "BHE");
  is.tensor("token_counts", token_counts, Type::kInt, "BH");
}

inline void linear(const Backend& backend, const TensorView& x, const TensorView& weight,
                   const Optional<TensorView>& bias, const TensorView& y) {
  Contract is(backend, "linear", weight);
  is.tensor("weight", weight, Type::kStored, "OI");
  is.tensor("input", x, Type::kStored, "BI");
  is.tensor("bias", bias, Type::kStored, "O");
  is.tensor("output", y, Type::kStored, "BO", Layout::kLastContiguous);
}

}  // namespace questbench::contract
