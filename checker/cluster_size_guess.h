// A damaged cluster_bits field: the tables are all in place, but read in the wrong unit.
#ifndef QCOW2CHECK_CHECKER_CLUSTER_SIZE_GUESS_H_
#define QCOW2CHECK_CHECKER_CLUSTER_SIZE_GUESS_H_

#include "checker/check_state.h"

namespace qcow2check {

// Adds the finding cluster-bits-suspect if refcounts disagree with the walk and, read with
// another cluster size, the first refcount block counts the header, the refcount table, itself
// and the L1 table once each and stops exactly at the end of the file, while with the header's
// cluster size it does not. Reads a few clusters, and nothing if no refcount is wrong.
void ReportSuspectClusterSize(CheckState& state);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_CLUSTER_SIZE_GUESS_H_
