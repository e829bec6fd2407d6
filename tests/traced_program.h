// A program under ptrace: looked at at each of its system calls, which can be made to fail, or to
// do less than was asked for, or be the last. Only the thread that the program starts with.
#ifndef QCOW2CHECK_TESTS_TRACED_PROGRAM_H_
#define QCOW2CHECK_TESTS_TRACED_PROGRAM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "tests/program.h"

namespace qcow2check::testing {

// A call that is about to be carried out.
struct TracedCall {
  int process = 0;
  uint64_t number = 0;  // SYS_...
  uint64_t arguments[6] = {};
};

// Those by which a repair changes files or directories, or makes that durable.
bool ChangesFiles(const TracedCall& call);
// Those by which parts of the file at `path`, which has no links in it, are read.
bool Reads(const TracedCall& call, const std::string& path);

enum class Fate {
  kCarriedOut,
  kKilledBefore,  // SIGKILL
  kKilledBehind,
  // Only where CanFailCalls():
  kFails,      // is not carried out; the program gets the error
  kIsShorter,  // a read or write of half the bytes, but one at least
};
struct CallFate {
  Fate fate = Fate::kCarriedOut;
  int error = 0;  // errno, for kFails
};

// Whether calls can be changed on this machine.
bool CanFailCalls();

struct TracedEnd {
  bool no_ptrace = false;  // it is not allowed here
  bool killed = false;     // as `look` asked
  CommandResult result;    // if it was not
  uint64_t peak_memory_bytes = 0;
};

// Runs argv[0], a path, and asks `look` at each system call.
TracedEnd RunTraced(const std::vector<std::string>& argv,
                    absl::FunctionRef<CallFate(const TracedCall&)> look);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_TRACED_PROGRAM_H_
