// Signs that a pointer was damaged or lost, so that what nothing references may be what it led to.
#ifndef QCOW2CHECK_CHECKER_LOST_POINTERS_H_
#define QCOW2CHECK_CHECKER_LOST_POINTERS_H_

#include "checker/check_state.h"

namespace qcow2check {

// Whether a finding says that something that pointed to data or to a table no longer does.
bool HasLostPointers(const CheckState& state);

// Whether an orphan of an image with compressed clusters is counted so often that the compressed
// data of many entries must have been there: a sector or more of a table lost them at once.
bool HasOrphansOfManyEntries(const CheckState& state);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_LOST_POINTERS_H_
