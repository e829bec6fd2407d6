// What the findings of a check say of each snapshot, looked up as often as there are snapshots.
#ifndef QCOW2CHECK_REPAIR_SNAPSHOT_SUSPICIONS_H_
#define QCOW2CHECK_REPAIR_SNAPSHOT_SUSPICIONS_H_

#include <cstdint>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "checker/check_state.h"
#include "common/finding.h"

namespace qcow2check {

class SnapshotSuspicions {
 public:
  // `state` must outlive this object. Costs one pass over findings and L1 tables.
  explicit SnapshotSuspicions(const CheckState& state);

  // Why the snapshot's L1 table may not be its own; nullptr if nothing says so.
  const Finding* About(uint64_t snapshot) const;
  // Whether a finding with this code names the snapshot.
  bool HasFinding(uint64_t snapshot, FindingCode code) const {
    return named_.contains({snapshot, code});
  }

 private:
  absl::flat_hash_map<uint64_t, const Finding*> about_l1_;
  absl::flat_hash_set<std::pair<uint64_t, FindingCode>> named_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_SNAPSHOT_SUSPICIONS_H_
