#include "cli/image_pool.h"

#include <sys/resource.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace qcow2check {
namespace {

// The outputs on their way from the threads that make them to the one that takes them: a window
// that moves over the images.
class OutputWindow {
 public:
  OutputWindow(size_t count, size_t length) : count_(count), slots_(length) {}

  // Makes outputs until none is left to be made. For any number of threads.
  void Make(absl::FunctionRef<ImageOutput(size_t)> make) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      moved_.wait(lock, [this] {
        return next_to_make_ == count_ || next_to_make_ < next_to_take_ + slots_.size();
      });
      if (next_to_make_ == count_) return;
      const size_t index = next_to_make_++;
      lock.unlock();
      ImageOutput output = make(index);
      lock.lock();
      slots_[index % slots_.size()] = std::move(output);
      if (index == next_to_take_) made_.notify_one();
    }
  }

  // Takes all outputs. For one thread.
  void Take(absl::FunctionRef<void(const ImageOutput&)> take) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (next_to_take_ < count_) {
      std::optional<ImageOutput>& slot = slots_[next_to_take_ % slots_.size()];
      made_.wait(lock, [&slot] { return slot.has_value(); });
      lock.unlock();
      take(*slot);
      slot.reset();
      lock.lock();
      ++next_to_take_;
      moved_.notify_all();
    }
  }

 private:
  const size_t count_;
  std::mutex mutex_;  // guards all below; a filled slot belongs to the taker
  std::condition_variable made_;
  std::condition_variable moved_;
  std::vector<std::optional<ImageOutput>> slots_;  // output i is in slot i % size
  size_t next_to_make_ = 0;
  size_t next_to_take_ = 0;
};

std::vector<std::thread> StartThreads(size_t count, const std::function<void()>& work) {
  std::vector<std::thread> threads;
  threads.reserve(count);
  try {
    while (threads.size() < count) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // A limit on processes or address space: those that did start do the work.
  }
  return threads;
}

}  // namespace

void MakeOutputsInOrder(size_t count, size_t threads, absl::FunctionRef<ImageOutput(size_t)> make,
                        absl::FunctionRef<void(const ImageOutput&)> take) {
  threads = std::min(threads, count);
  OutputWindow window(count, std::max<size_t>(threads, 1) * kOutputsPerThread);
  std::vector<std::thread> makers;
  if (threads > 1) makers = StartThreads(threads, [&window, make] { window.Make(make); });
  if (makers.empty()) {
    for (size_t i = 0; i < count; ++i) take(make(i));
    return;
  }
  window.Take(take);
  for (std::thread& maker : makers) maker.join();
}

size_t UsableThreads(size_t wanted) {
  size_t threads = wanted == 0 ? std::thread::hardware_concurrency() : wanted;
  // A thread has a stack (8 MiB) and an arena of the allocator (64 MiB, at first 128 MiB) of
  // address space, used or not. Most of it is to be left to the images.
  constexpr uint64_t kAddressSpacePerThreadBytes = uint64_t{256} << 20;
  struct rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    threads = std::min<size_t>(threads, limit.rlim_cur / kAddressSpacePerThreadBytes);
  }
  return std::clamp<size_t>(threads, 1, kMaxThreads);
}

}  // namespace qcow2check
