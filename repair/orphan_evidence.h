// Which orphan a damaged pointer once led to, if exactly one explains the damage.
//
// Evidence, strongest first: one flipped bit in the entry away from an orphan; both neighbours in
// the table say where the missing cluster must lie, as guests are mostly written in order; there
// is one orphan and one damaged pointer. Needs a finished check. Reads a few entries of the
// tables.
#ifndef QCOW2CHECK_REPAIR_ORPHAN_EVIDENCE_H_
#define QCOW2CHECK_REPAIR_ORPHAN_EVIDENCE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "checker/check_state.h"
#include "common/cluster_set.h"
#include "common/table_entry.h"
#include "repair/plan_builder.h"
#include "repair/stored_refcounts.h"

namespace qcow2check {

struct Explanation {
  uint64_t offset_bytes = 0;  // where the entry should lead
  bool refcount_is_one = false;
  std::string evidence;
};

// An L2 entry and its place.
struct EntryAt {
  uint64_t place_bytes = 0;  // in the file
  uint64_t l2_index = 0;
  uint64_t entry = 0;
  bool active = true;  // in a table of the active disk, whose COPIED flags mean something
};

class OrphanEvidence {
 public:
  // Both must outlive this object.
  OrphanEvidence(const CheckState& state, const PlanBuilder& plan, const StoredRefcounts& stored);

  // For an L2 entry that leads to no place of its own.
  std::optional<Explanation> ForDataEntry(const EntryAt& at) const;
  // For one of several entries that lead to the same place: only what its neighbours say.
  std::optional<Explanation> FromBothNeighbours(const EntryAt& at) const;
  // For an entry of the active L1 table that leads to no L2 table.
  std::optional<Explanation> ForL1Entry(uint64_t entry) const;

  // A pointer behind the end of the file whose target has a refcount was right once: the file
  // was cut off. So was one of several that lead right behind the end.
  bool WasCutOff(uint64_t offset_bytes) const;
  // Whether the cluster is an orphan that may be guest data. Each is looked into once.
  bool IsOrphan(uint64_t offset_bytes) const;
  // Orphans that are L2 tables, by offset.
  const std::vector<uint64_t>& tables() const { return tables_; }
  // Otherwise orphans may be what a snapshot needs.
  bool snapshots_are_known() const { return snapshots_are_known_; }

 private:
  void SetTablesAside();
  void EraseOrphans(const CompressedRange& range);
  // What the next entry in use before or behind says: the place that follows its cluster, or
  // comes before it.
  std::optional<uint64_t> Neighbour(const EntryAt& at, int direction) const;
  // Whether the COPIED flag is what an entry that leads there has.
  bool FlagFits(uint64_t entry, uint64_t offset_bytes) const;
  Explanation Explain(uint64_t offset_bytes, std::string evidence) const;
  void FindEndsOfFile();
  bool OthersAreRight(uint64_t orphan_bytes, uint64_t entry) const;
  bool HoldsRefcountsOfOld(uint64_t offset_bytes) const;
  bool HoldsReplacedRefcounts(uint64_t offset_bytes) const;

  const CheckState& state_;
  const PlanBuilder& plan_;
  const StoredRefcounts& stored_;
  const bool snapshots_are_known_;
  ClusterSet orphans_;
  mutable absl::flat_hash_map<uint64_t, bool> looked_into_;  // orphans, whether they are refcounts
  std::vector<uint64_t> tables_;
  bool tables_explain_all_ = true;  // all orphans are tables_ or what these map
  bool flags_agree_ = true;         // all COPIED flags in tables_ say what the refcounts say
  uint64_t damaged_l1_entries_ = 0;
  uint64_t damaged_l2_entries_ = 0;
  uint64_t cut_off_end_bytes_ = 0;  // up to where pointers lead that the end of the file cut off
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_ORPHAN_EVIDENCE_H_
