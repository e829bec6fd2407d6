// How many threads to use.
#ifndef QCOW2CHECK_COMMON_THREADS_H_
#define QCOW2CHECK_COMMON_THREADS_H_

#include <cstdint>

namespace qcow2check {

// Each thread of a run over many images has up to four files open, of the 1024 that a process
// usually may have.
inline constexpr uint64_t kMaxThreads = 256;

// How many threads to use where `wanted` are asked for, 0: one for each processor of this process.
// Fewer if it may have little address space (RLIMIT_AS). 1 to kMaxThreads.
uint64_t UsableThreads(uint64_t wanted);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_THREADS_H_
