// What one thread counts while it walks L2 tables: references to host clusters and the claims of
// COPIED flags. Threads have counts of their own, which are added up when all tables are walked.
#ifndef QCOW2CHECK_CHECKER_GUEST_COUNTS_H_
#define QCOW2CHECK_CHECKER_GUEST_COUNTS_H_

#include "checker/check_state.h"
#include "common/cluster_set.h"
#include "common/refcount_map.h"

namespace qcow2check {

struct GuestCounts {
  explicit GuestCounts(const CheckState& state);

  RefcountMap standard;    // references by entries that are not compressed
  RefcountMap compressed;  // references by compressed clusters, which may share host clusters
  ClusterSet copied;       // an active entry with COPIED points here
  ClusterSet not_copied;   // an active entry without COPIED points here
  ClusterSet collisions;   // got a second reference in `standard` that may not be sharing
  ClusterSet past_end;     // referenced, but behind the end of the file
};

// Moves what `state` has counted so far into `counts`, which is empty: the first thread goes on
// where the passes before it ended, and pages that it touches, too, do not exist twice.
void TakeOver(CheckState& state, GuestCounts& counts);

// Adds `counts` to the expected refcounts and sets of `state` and leaves it empty; `compressed`
// stays, for AddCompressed.
void AddStandard(CheckState& state, GuestCounts& counts);

// Adds the compressed references of one thread; all standard ones must have been added. A cluster
// that holds both is a collision.
void AddCompressed(CheckState& state, GuestCounts& counts);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_GUEST_COUNTS_H_
