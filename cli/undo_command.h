// `qcow2check undo UNDOFILE IMAGE`: takes a repair back.
#ifndef QCOW2CHECK_CLI_UNDO_COMMAND_H_
#define QCOW2CHECK_CLI_UNDO_COMMAND_H_

#include <string>
#include <vector>

namespace qcow2check {

// Runs the command with the arguments behind "undo"; returns the exit code: 0 if the image is as
// it was before the repair, otherwise 1.
int RunUndoCommand(const std::vector<std::string>& arguments);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_UNDO_COMMAND_H_
