// Jobs shared out between threads: order, bounds, what is at work at once.
#include "common/ordered_jobs.h"

#include <sys/resource.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/threads.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qcow2check::testing {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::Ge;
using ::testing::Le;

// A number that threads wait for.
class Count {
 public:
  size_t Increase() {
    const std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
    return ++value_;
  }
  void WaitFor(size_t value) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return value_ >= value; });
  }
  size_t value() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return value_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t value_ = 0;
};

TEST(OrderedJobsTest, EveryResultOnceAndInOrder) {
  for (const uint64_t threads : {1, 2, 3, 8, 64}) {
    for (const uint64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<int> times_made(count);  // each by one thread at a time
      std::vector<std::string> taken, expected;
      RunInOrder<std::string>(
          count, threads,
          [&](uint64_t, uint64_t i) {
            ++times_made[i];
            return absl::StrCat(i);
          },
          [&](const std::string& output) { taken.push_back(output); });
      for (size_t i = 0; i < count; ++i) expected.push_back(absl::StrCat(i));
      EXPECT_EQ(taken, expected);
      EXPECT_THAT(times_made, Each(1));
    }
  }
}

// A check that needs more memory than there is must not end the program.
TEST(OrderedJobsTest, AnExceptionReachesTheCaller) {
  for (const uint64_t threads : {1, 2, 8}) {
    for (const bool of_work : {true, false}) {
      uint64_t taken = 0;
      const auto run = [&] {
        RunInOrder<uint64_t>(
            1000, threads,
            [&](uint64_t, uint64_t i) {
              if (of_work && i == 77) throw std::bad_alloc();
              return i;
            },
            [&](uint64_t i) {
              if (!of_work && i == 77) throw std::bad_alloc();
              ++taken;
            });
      };
      EXPECT_THROW(run(), std::bad_alloc);
      EXPECT_LE(taken, 77u);
    }
  }
}

TEST(OrderedJobsTest, ResultsFarAheadOfASlowJobAreNotMade) {
  constexpr uint64_t kThreads = 4, kWindow = kThreads * kResultsPerThread;
  Count started;
  size_t taken = 0;
  std::vector<size_t> existing;  // when each was taken
  RunInOrder<std::string>(
      1000, kThreads,
      [&](uint64_t, uint64_t i) {
        started.Increase();
        // Two slow ones, which let the others go as far as they can.
        if (i == 0) started.WaitFor(kWindow);
        if (i == 500) started.WaitFor(500 + kWindow);
        return std::string();
      },
      [&](const std::string&) { existing.push_back(started.value() - taken++); });
  EXPECT_THAT(existing, Each(AllOf(Ge(size_t{1}), Le(kWindow))));
  EXPECT_EQ(existing[0], kWindow);
  EXPECT_EQ(existing[500], kWindow);
}

TEST(OrderedJobsTest, AResultDoesNotWaitForThoseBehindIt) {
  Count taken;
  RunInOrder<std::string>(
      10, 2,
      [&](uint64_t, uint64_t i) {
        taken.WaitFor(i);
        return std::string();
      },
      [&](const std::string&) { taken.Increase(); });
  EXPECT_EQ(taken.value(), 10u);
}

TEST(OrderedJobsTest, OneThreadIsTheCallersOwn) {
  const std::thread::id caller = std::this_thread::get_id();
  RunInOrder<std::string>(
      5, 1,
      [&](uint64_t, uint64_t) {
        EXPECT_EQ(std::this_thread::get_id(), caller);
        return std::string();
      },
      [&](const std::string&) { EXPECT_EQ(std::this_thread::get_id(), caller); });
}

TEST(OrderedJobsTest, LittleAddressSpaceMeansFewThreads) {
  struct rlimit before;
  QCOW2CHECK_CHECK(getrlimit(RLIMIT_AS, &before) == 0);
  if (before.rlim_cur != RLIM_INFINITY) GTEST_SKIP() << "the address space is limited already";
  EXPECT_EQ(UsableThreads(7), 7u);
  EXPECT_EQ(UsableThreads(10000), kMaxThreads);
  EXPECT_THAT(UsableThreads(0), AllOf(Ge(uint64_t{1}), Le(kMaxThreads)));
  for (const auto& [mebibytes, most] : std::vector<std::pair<rlim_t, uint64_t>>{
           {0, 1}, {100, 1}, {1024, 4}, {uint64_t{1} << 30, kMaxThreads}}) {
    struct rlimit little = before;
    little.rlim_cur = mebibytes << 20;
    QCOW2CHECK_CHECK(setrlimit(RLIMIT_AS, &little) == 0);
    const uint64_t threads = UsableThreads(kMaxThreads);
    QCOW2CHECK_CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    EXPECT_EQ(threads, most) << mebibytes;
  }
}

}  // namespace
}  // namespace qcow2check::testing
