// Many images at once, printed one after another.
//
// Owns the threads of a run over several images. Needs a way to make the output of one image;
// produces the outputs in the order of the images, each as soon as those before it are out. At
// most kOutputsPerThread outputs a thread exist at a time: an image that takes long holds up those
// far behind it, instead of their reports piling up.
#ifndef QCOW2CHECK_CLI_IMAGE_POOL_H_
#define QCOW2CHECK_CLI_IMAGE_POOL_H_

#include <cstddef>
#include <string>

#include "absl/functional/function_ref.h"

namespace qcow2check {

// What is printed about one image, and its exit code.
struct ImageOutput {
  std::string out;  // for stdout
  std::string err;  // for stderr, before it
  int exit_code = 0;
};

inline constexpr size_t kOutputsPerThread = 4;

// Each thread has up to four files open, of the 1024 that a process usually may have.
inline constexpr size_t kMaxThreads = 256;

// Calls `make` once for each number below `count`, in up to `threads` (at least 1) threads at a
// time, and hands each result to `take`, in order and in the calling thread. At most
// kOutputsPerThread * threads results are being made, waiting or being taken at any time. Where
// the system gives fewer threads the work is done with those; `threads` = 1 starts none. `make`
// must be thread-safe unless `threads` is 1.
void MakeOutputsInOrder(size_t count, size_t threads, absl::FunctionRef<ImageOutput(size_t)> make,
                        absl::FunctionRef<void(const ImageOutput&)> take);

// How many threads to use where `wanted` are asked for, 0: one for each processor of this process.
// Fewer if it may have little address space (RLIMIT_AS). 1 to kMaxThreads.
size_t UsableThreads(size_t wanted);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_IMAGE_POOL_H_
