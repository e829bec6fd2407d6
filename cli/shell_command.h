// Command lines to copy from a report into a shell.
#ifndef QCOW2CHECK_CLI_SHELL_COMMAND_H_
#define QCOW2CHECK_CLI_SHELL_COMMAND_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace qcow2check {

// `word` so that a shell takes it for one argument with just these bytes. Nothing of it reaches a
// terminal as a control character; words with such characters need a shell that knows $'...'.
std::string ShellQuoted(absl::string_view word);

// "qcow2check WORD FILE...": the files quoted, and never taken for options.
std::string CommandLine(absl::string_view words, const std::vector<std::string>& files);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_SHELL_COMMAND_H_
