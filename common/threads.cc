#include "common/threads.h"

#include <sys/resource.h>

#include <algorithm>
#include <thread>

namespace qcow2check {

uint64_t UsableThreads(uint64_t wanted) {
  uint64_t threads = wanted == 0 ? std::thread::hardware_concurrency() : wanted;
  // A thread has a stack (8 MiB) and an arena of the allocator (64 MiB, at first 128 MiB) of
  // address space, used or not. Most of it is to be left to the images.
  constexpr uint64_t kAddressSpacePerThreadBytes = uint64_t{256} << 20;
  struct rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    threads = std::min<uint64_t>(threads, limit.rlim_cur / kAddressSpacePerThreadBytes);
  }
  return std::clamp<uint64_t>(threads, 1, kMaxThreads);
}

}  // namespace qcow2check
