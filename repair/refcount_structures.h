// New refcount structures: blocks that are missing or unusable, a new refcount table when the old
// one cannot be used or is too small, wider refcounts (specification, "Refcounts").
//
// Everything new is written to free space and flushed; then one write (a table entry, or the
// header's pointer to the table) switches over. What was there before becomes unreferenced, and
// the next check decides about it as about any orphan.
#ifndef QCOW2CHECK_REPAIR_REFCOUNT_STRUCTURES_H_
#define QCOW2CHECK_REPAIR_REFCOUNT_STRUCTURES_H_

#include <cstdint>
#include <optional>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "checker/check_state.h"
#include "common/cluster_set.h"
#include "repair/free_space.h"
#include "repair/patched_file.h"
#include "repair/plan_builder.h"
#include "repair/stored_refcounts.h"

namespace qcow2check {

class RefcountStructures {
 public:
  // Both must outlive this object. `state` is a check of plan.image().
  RefcountStructures(const CheckState& state, PlanBuilder& plan);

  StoredRefcounts& stored() { return stored_; }
  uint64_t stored_refcount(uint64_t cluster) const { return stored_.Get(cluster); }
  FreeSpace& space() { return space_; }

  // Whether there is something that only new structures can repair.
  bool NeedsRepair() const;

  // Plans all that is needed so that every cluster in use, and every cluster taken from space(),
  // has its refcount in the file. False, and the finding of
  // `reason` declined, if there is no room; then nothing was written that matters.
  bool Commit(const PlanReason& reason);

  // After Commit and a flush: the clusters of [begin, end), which only the structure that was
  // there used, are free.
  void Free(uint64_t begin_bytes, uint64_t end_bytes, const PlanReason& reason);

 private:
  bool TableIsUsable() const;
  int WantedOrder() const;
  void AddBlocksInUse();
  void AddNeededBlocks();
  template <typename Visit>
  void ForEachDamagedEntry(Visit visit) const;
  bool PlaceBlocks(const PlanReason& reason);
  void FindReplaced();
  void WriteBlock(uint64_t table_index, uint64_t cluster, const PlanReason& reason);
  bool AllAreOnes(uint64_t first_cluster) const;
  uint64_t CountFor(uint64_t cluster, ZeroSearch& zeros) const;
  void SwitchTable(const PlanReason& reason);
  void SwitchEntries(const PlanReason& reason);

  const CheckState& state_;
  PlanBuilder& plan_;
  StoredRefcounts stored_;
  FreeSpace space_;
  const ExtentSet uncounted_;  // in use, whatever is there
  const int old_order_;
  const int order_;
  const uint64_t block_entries_;       // with the wanted width
  const bool all_new_;                 // the width changes: no block can stay
  uint64_t table_entries_ = 0;         // 0: the table cannot be used
  std::optional<uint64_t> new_table_;  // its first cluster
  uint64_t new_table_clusters_ = 0;
  absl::btree_set<uint64_t> needed_;                // table indexes that still need a block
  absl::btree_map<uint64_t, uint64_t> new_blocks_;  // table index -> cluster
  absl::btree_set<uint64_t> covered_;               // taken clusters whose block is assured
  // References that end when the new structures count, by cluster.
  absl::flat_hash_map<uint64_t, uint64_t> replaced_;
  ClusterSet replaced_clusters_;  // those in the file
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_REFCOUNT_STRUCTURES_H_
