// `qcow2check --repair`: one image opened for writing, locked, repaired and looked at again; with
// --dry-run only the plan, of an image opened for reading.
#ifndef QCOW2CHECK_CLI_REPAIR_COMMAND_H_
#define QCOW2CHECK_CLI_REPAIR_COMMAND_H_

#include <string>

#include "cli/image_outcome.h"
#include "cli/options.h"

namespace qcow2check {

// Repairs the image at `path` as `command` says; prints nothing.
ImageOutcome RepairOne(const std::string& path, const CheckCommandOptions& command);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_REPAIR_COMMAND_H_
