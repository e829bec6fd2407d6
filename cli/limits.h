// The limits of one check: what the caller asked for, and what the system allows the process.
#ifndef QCOW2CHECK_CLI_LIMITS_H_
#define QCOW2CHECK_CLI_LIMITS_H_

#include "checker/check.h"
#include "cli/options.h"

namespace qcow2check {

// Sets the limits of a check that begins now and shares the process with the others of
// CheckCommandOptions::images_at_once. Where the system limits the address space (RLIMIT_AS) or the
// processor time (RLIMIT_CPU) of the process, the check ends, with a report, before the system
// would end it without one.
void SetLimits(const CheckCommandOptions& command, CheckOptions& check);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_LIMITS_H_
