#include "cli/limits.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "absl/time/clock.h"

namespace qcow2check {
namespace {

uint64_t AddressSpaceInUseBytes() {
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// 0 if there is no limit.
uint64_t MemoryAllowedBytes(uint64_t checks_at_once) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 0;
  const uint64_t used = std::min<uint64_t>(AddressSpaceInUseBytes(), limit.rlim_cur);
  // Half of what is left: lists that grow exist twice for a moment, and the allocator reserves more
  // than it hands out.
  return std::max<uint64_t>((limit.rlim_cur - used) / 2 / checks_at_once, 1);
}

absl::Duration ProcessorTimeAllowed() {
  struct rlimit limit;
  if (getrlimit(RLIMIT_CPU, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return absl::InfiniteDuration();
  }
  // The last tenth is for what cannot be left half done, and for the report.
  return absl::Seconds(static_cast<double>(limit.rlim_cur) * 0.9);
}

}  // namespace

void SetLimits(const CheckCommandOptions& command, CheckOptions& check) {
  check.max_memory_bytes = command.max_memory_bytes;
  const uint64_t allowed = MemoryAllowedBytes(command.images_at_once);
  if (allowed != 0 && (check.max_memory_bytes == 0 || allowed < check.max_memory_bytes)) {
    check.max_memory_bytes = allowed;
  }
  check.deadline = absl::Now() + command.max_time;
  check.processor_time_end = ProcessorTimeAllowed();
}

}  // namespace qcow2check
