// Work items of a parallel region that reads memory in their order.
//
// Every thread takes neighbouring items, so that what it reads is one stream, which the hardware's prefetcher follows; dealt
// out one by one to whoever is free, items would make every thread jump. A thread that is done takes what others have left.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace questbench {

class Shares {
 public:
  // For a region of so many threads, or fewer: made before it, used once.
  Shares(int64_t items, int threads) : shares_(threads) {
    for (int64_t t = 0; t < threads; ++t) {
      shares_[t].next = items * t / threads;
      shares_[t].end = items * (t + 1) / threads;
    }
  }

  // Called by every thread of the region; others may still be at work when it returns.
  template <typename F>
  void each(F work) {
    const int count = static_cast<int>(shares_.size()), own = omp_get_thread_num();
    for (int i = 0; i < count; ++i) {
      Share& share = shares_[(own + i) % count];
      for (int64_t item; (item = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) work(item);
    }
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares_;
};

}  // namespace questbench
