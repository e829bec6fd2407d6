// Work that is shared out between threads, with results that come back in order.
#ifndef QCOW2CHECK_COMMON_ORDERED_JOBS_H_
#define QCOW2CHECK_COMMON_ORDERED_JOBS_H_

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace qcow2check {

inline constexpr uint64_t kResultsPerThread = 4;

// Calls work(worker, job) for each job 0..jobs-1, on up to `threads` threads (the caller's is one
// of them), and absorb(result) for each result, in the order of the jobs and one at a time. What
// comes out is therefore the same for any number of threads, if work depends on nothing but its
// job. `worker` is 0..threads-1 and no two threads have the same one.
//
// An exception of either ends the work and is thrown again to the caller, once all threads are
// done.
//
// At most kResultsPerThread results for each thread are being made or waiting: a job that takes
// long holds up those far behind it, instead of their results piling up. If the system gives fewer
// threads than wanted, those it gives do all the work.
template <typename Result, typename Work, typename Absorb>
void RunInOrder(uint64_t jobs, uint64_t threads, Work work, Absorb absorb) {
  threads = std::min(threads, jobs);
  if (threads <= 1) {
    for (uint64_t job = 0; job < jobs; ++job) absorb(work(uint64_t{0}, job));
    return;
  }
  const uint64_t window = threads * kResultsPerThread;
  std::vector<std::optional<Result>> waiting(window);
  std::mutex mutex;
  std::condition_variable absorbed_more;
  uint64_t started = 0, absorbed = 0;
  std::exception_ptr failure;
  const auto work_off = [&](uint64_t worker) {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      absorbed_more.wait(lock, [&] { return started == jobs || started - absorbed < window; });
      if (started == jobs) return;
      const uint64_t job = started++;
      lock.unlock();
      Result result = work(worker, job);
      lock.lock();
      waiting[job % window] = std::move(result);
      if (job != absorbed) continue;
      for (; waiting[absorbed % window]; ++absorbed) {
        absorb(*std::move(waiting[absorbed % window]));
        waiting[absorbed % window].reset();
      }
      absorbed_more.notify_all();
    }
  };
  const auto run = [&](uint64_t worker) {
    try {
      work_off(worker);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
      started = jobs;
      absorbed_more.notify_all();
    }
  };
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (uint64_t worker = 1; worker < threads; ++worker) {
      others.emplace_back(run, worker);
    }
  } catch (const std::system_error&) {
    // No more threads are to be had: a limit on processes or memory.
  }
  run(0);
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_ORDERED_JOBS_H_
