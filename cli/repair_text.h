// What a repair did, or what it would do, for people.
#ifndef QCOW2CHECK_CLI_REPAIR_TEXT_H_
#define QCOW2CHECK_CLI_REPAIR_TEXT_H_

#include <string>

#include "cli/repair_outcome.h"

namespace qcow2check {

struct RepairTextOptions {
  std::string name;  // what the caller called the image
  std::string path;  // where it is, for command lines to copy
  bool colour = false;
};

// The part in front of the report of the image as it is now (TextReport): what was written or
// would be, what loses data first; what is left as it is and why; what is held back; how to take
// it back. Empty if there was nothing to repair.
std::string RepairText(const RepairOutcome& outcome, const RepairTextOptions& options);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_REPAIR_TEXT_H_
