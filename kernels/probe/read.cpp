// Reads a buffer with several threads and keeps nothing but the exclusive or of its words: the strongest plain read,
// against which measured bandwidths are held.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// One cache line; the compiler splits it into whatever the machine has.
typedef std::uint64_t Line __attribute__((vector_size(64)));

constexpr std::size_t kLines = 8;           // in flight per turn of the loop, each with a register of its own
constexpr std::size_t kAhead = 4096;        // bytes; prefetching beyond the end of the buffer does no harm
constexpr std::size_t kChunk = 1 << 20;     // bytes a thread takes at a time, so that a slow core holds no one up

std::uint64_t read_chunk(const char* data, std::size_t size) {
  Line sum[kLines] = {};
  std::size_t at = 0;
  for (; at + sizeof(sum) <= size; at += sizeof(sum)) {
    for (std::size_t i = 0; i < kLines; ++i) {
      const char* line = data + at + i * sizeof(Line);
      __builtin_prefetch(line + kAhead);
      sum[i] ^= *reinterpret_cast<const Line*>(line);
    }
  }
  for (std::size_t i = 1; i < kLines; ++i) sum[0] ^= sum[i];
  std::uint64_t result = 0;
  for (std::size_t i = 0; i < sizeof(Line) / 8; ++i) result ^= sum[0][i];
  for (; at + 8 <= size; at += 8) result ^= *reinterpret_cast<const std::uint64_t*>(data + at);
  return result;
}

// Threads that wait between reads: starting new ones for each read would cost a visible part of it.
class Reader {
 public:
  explicit Reader(int threads) {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { help(); });
  }

  ~Reader() {
    stop_ = true;
    turn_.fetch_add(1);
    turn_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  std::uint64_t read(const char* data, std::size_t size) {
    data_ = data;
    size_ = size;
    next_ = 0;
    sum_ = 0;
    busy_ = helpers_.size();
    turn_.fetch_add(1);  // publishes all of the above to the helpers
    turn_.notify_all();
    work();
    for (std::size_t left; (left = busy_.load()) != 0;) busy_.wait(left);
    return sum_;
  }

 private:
  void help() {
    for (std::uint32_t seen = 0;;) {
      turn_.wait(seen);
      seen = turn_.load();
      if (stop_) return;
      work();
      if (busy_.fetch_sub(1) == 1) busy_.notify_one();
    }
  }

  void work() {
    std::uint64_t sum = 0;
    for (std::size_t at; (at = next_.fetch_add(kChunk)) < size_;) {
      sum ^= read_chunk(data_ + at, std::min(kChunk, size_ - at));
    }
    sum_.fetch_xor(sum);
  }

  std::vector<std::thread> helpers_;
  std::atomic<std::uint32_t> turn_{0};
  std::atomic<std::size_t> busy_{0}, next_{0};
  std::atomic<std::uint64_t> sum_{0};
  std::atomic<bool> stop_{false};
  const char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace

// `data` must be aligned to 64 bytes and `size` be a multiple of 8.
extern "C" {

void* questbench_reader_new(int threads) { return new Reader(threads); }

std::uint64_t questbench_reader_read(void* reader, const void* data, std::size_t size) {
  return static_cast<Reader*>(reader)->read(static_cast<const char*>(data), size);
}

void questbench_reader_free(void* reader) { delete static_cast<Reader*>(reader); }
}
