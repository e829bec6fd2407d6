// Names of images in a file: for more of them than a command line can hold.
#ifndef QCOW2CHECK_CLI_IMAGE_LIST_H_
#define QCOW2CHECK_CLI_IMAGE_LIST_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace qcow2check {

// The names in the file at `path` ("-": standard input), each up to an `end` ('\n' or '\0') or the
// end of the file; empty ones are left out, nothing else is. An error is one plain sentence: the
// file cannot be read, or holds a NUL although lines are expected (kInvalidArgument): it is another
// kind of file. Memory: the file.
absl::StatusOr<std::vector<std::string>> ReadImageList(const std::string& path, char end);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_IMAGE_LIST_H_
