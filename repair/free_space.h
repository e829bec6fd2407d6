// Room for new structures: clusters that hold nothing anybody could miss.
//
// A regular file grows at its end. Inside the file (and on a device, which cannot grow) a cluster
// is taken only if nothing references it, its refcount is 0, and it reads as zeros, or if nothing
// suggests that anything was lost from the image.
#ifndef QCOW2CHECK_REPAIR_FREE_SPACE_H_
#define QCOW2CHECK_REPAIR_FREE_SPACE_H_

#include <cstdint>
#include <optional>

#include "absl/container/btree_map.h"
#include "checker/check_state.h"
#include "checker/lost_pointers.h"
#include "common/checked_math.h"
#include "repair/extent_set.h"
#include "repair/plan_builder.h"
#include "repair/stored_refcounts.h"
#include "repair/uncounted_tables.h"

namespace qcow2check {

class FreeSpace {
 public:
  // All must outlive this object. `state` is a check of plan.image().
  FreeSpace(const CheckState& state, PlanBuilder& plan, const StoredRefcounts& refcounts)
      : state_(state),
        plan_(plan),
        refcounts_(refcounts),
        uncounted_(UncountedTables(state)),
        nothing_lost_(state.coverage.complete() && state.held_back.clusters == 0 &&
                      !HasLostPointers(state) && !plan.removes_evidence()) {}

  // The first of `count` consecutive free clusters, which are then taken and will be referenced
  // `refcount` times; nothing if there is no room. Growth is planned at once.
  std::optional<uint64_t> Take(uint64_t count, uint64_t refcount = 1);

  // A cluster that was taken is free again.
  void GiveBack(uint64_t cluster);

  // Taken clusters, none of which is in use in the image yet, with their refcounts.
  const absl::btree_map<uint64_t, uint64_t>& taken() const { return taken_; }
  // How much more room would have been needed.
  uint64_t missing_bytes() const { return missing_bytes_; }

 private:
  std::optional<uint64_t> TakeAtEnd(uint64_t count);
  std::optional<uint64_t> FindInside(uint64_t count);
  bool EndIsInDoubt() const;
  uint64_t BehindCutOffSnapshotTable(uint64_t first, uint64_t count) const;
  bool IsFree(uint64_t cluster) const;

  const CheckState& state_;
  PlanBuilder& plan_;
  const StoredRefcounts& refcounts_;
  const ExtentSet uncounted_;
  const bool nothing_lost_;
  absl::btree_map<uint64_t, uint64_t> taken_;
  uint64_t next_inside_ = 1;         // no single cluster in front of it is free
  uint64_t no_run_of_ = kSaturated;  // so many consecutive clusters are not free inside the file
  uint64_t missing_bytes_ = 0;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_FREE_SPACE_H_
