// `qcow2check inspect`: shows what is stored in an image, decoded but not judged.
#ifndef QCOW2CHECK_CLI_INSPECT_COMMAND_H_
#define QCOW2CHECK_CLI_INSPECT_COMMAND_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qcow2check {

// "4096", "0x1000", "4K" (K, M, G, T, P, E: powers of 1024) as a number; kInvalidArgument
// with one sentence for anything else, and for what does not fit in 64 bits.
absl::StatusOr<uint64_t> ParseByteOffset(absl::string_view text);

// Runs the command with the arguments behind "inspect"; returns the exit code: 0 if all that was
// asked for could be shown, 63 for what is no qcow2 image, otherwise 1.
int RunInspectCommand(const std::vector<std::string>& arguments);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_INSPECT_COMMAND_H_
