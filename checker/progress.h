// What somebody who waits for checks can see of them, and how they are told to stop.
#ifndef QCOW2CHECK_CHECKER_PROGRESS_H_
#define QCOW2CHECK_CHECKER_PROGRESS_H_

#include <atomic>
#include <cstdint>

namespace qcow2check {

// Shared by one or more checks and their watcher. Everything may be read and set by any thread at
// any time.
struct Progress {
  std::atomic<uint64_t> bytes_read{0};      // metadata
  std::atomic<uint64_t> bytes_expected{0};  // of metadata, in all; known when the tables are found
  std::atomic<bool> stop{false};            // checks end soon, with what they have
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_PROGRESS_H_
