// What the tables of the disk and of other snapshots say about a damaged L2 entry: where they share
// a cluster, each of them leads to it.
#ifndef QCOW2CHECK_REPAIR_SHARED_EVIDENCE_H_
#define QCOW2CHECK_REPAIR_SHARED_EVIDENCE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "checker/check_state.h"
#include "repair/orphan_evidence.h"
#include "repair/plan_builder.h"
#include "repair/stored_refcounts.h"

namespace qcow2check {

class SharedEvidence {
 public:
  // All must outlive this object.
  SharedEvidence(const CheckState& state, const PlanBuilder& plan, const StoredRefcounts& stored)
      : state_(state), plan_(plan), stored_(stored) {}

  // The cluster that another table has at the same guest offset, if one bit of the entry leads
  // there and its refcount counts one reference more for each use of the entry's table. Nothing if
  // that holds for two clusters, and after so many reads that no accident explains it.
  std::optional<Explanation> ForDataEntry(const EntryAt& at) const;

 private:
  void FindTables() const;
  bool MissesReferences(uint64_t offset_bytes, uint64_t references) const;

  const CheckState& state_;
  const PlanBuilder& plan_;
  const StoredRefcounts& stored_;
  mutable absl::flat_hash_map<uint64_t, const L2Table*> tables_;          // by offset
  mutable absl::flat_hash_map<uint64_t, std::vector<uint64_t>> offsets_;  // by slot in the L1 table
  mutable uint64_t reads_left_ = 65536;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_SHARED_EVIDENCE_H_
