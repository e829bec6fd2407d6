// A file without a qcow2 header that once had one.
#ifndef QCOW2CHECK_CHECKER_LOST_HEADER_H_
#define QCOW2CHECK_CHECKER_LOST_HEADER_H_

#include "checker/check_state.h"

namespace qcow2check {

// Adds the finding header-lost, and returns true, if the file looks like a qcow2 image whose first
// cluster was overwritten: for some cluster size, a refcount table in the second cluster that names
// a refcount block whose counts fit the clusters around it (the layout that qemu-img and most other
// programs write). Reads a few clusters at most.
bool ReportLostHeader(CheckState& state);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_LOST_HEADER_H_
