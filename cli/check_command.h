// `qcow2check [check]`: opens, locks, checks and reports each image.
#ifndef QCOW2CHECK_CLI_CHECK_COMMAND_H_
#define QCOW2CHECK_CLI_CHECK_COMMAND_H_

#include <string>
#include <vector>

namespace qcow2check {

// Runs the command with the arguments behind the program's name; returns the exit code. Reports
// go to stdout, what keeps an image from being checked goes to stderr as one sentence.
int RunCheckCommand(const std::vector<std::string>& arguments);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_CHECK_COMMAND_H_
