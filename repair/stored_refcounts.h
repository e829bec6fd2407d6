// The refcounts that are stored in an image, for the planner: read one by one, and set.
//
// Needs a CheckState whose passes have run. A refcount block counts as usable if no other
// metadata is in its cluster and what it holds could be refcounts; the others are never written,
// but replaced as a whole (repair/refcount_structures.h).
#ifndef QCOW2CHECK_REPAIR_STORED_REFCOUNTS_H_
#define QCOW2CHECK_REPAIR_STORED_REFCOUNTS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/btree_map.h"
#include "checker/check_state.h"
#include "repair/plan_builder.h"

namespace qcow2check {

class StoredRefcounts {
 public:
  // Both must outlive this object. `state` is a check of plan.image().
  StoredRefcounts(const CheckState& state, PlanBuilder& plan);

  // Host offset of the block for refcount table entry `table_index`, if there is a usable one.
  std::optional<uint64_t> BlockAt(uint64_t table_index) const;
  const absl::btree_map<uint64_t, uint64_t>& blocks() const { return blocks_; }
  uint64_t TableIndexOf(uint64_t cluster) const { return cluster / block_entries_; }
  bool HasBlockFor(uint64_t cluster) const { return BlockAt(TableIndexOf(cluster)).has_value(); }

  // 0 where there is no usable block or it cannot be read. Those of neighbours are read at once.
  uint64_t Get(uint64_t cluster) const;

  // Plans that clusters [first, first + count) get the refcount `value`, which fits the width, as
  // far as they have usable blocks. `before_all`: as the first writes of the repair.
  void Set(uint64_t first, uint64_t count, uint64_t value, const PlanReason& reason,
           bool before_all = false);

 private:
  // A part of a block, as it was when the plan had so many writes.
  struct Piece {
    uint64_t offset_bytes = 0;
    uint64_t writes = 0;
    std::vector<uint8_t> bytes;  // empty: none was read, or it cannot be read
  };

  uint64_t GetAlone(uint64_t block, uint64_t bit) const;

  const CheckState& state_;
  PlanBuilder& plan_;
  const int order_;
  const uint64_t block_entries_;
  absl::btree_map<uint64_t, uint64_t> blocks_;  // table index -> host offset
  mutable Piece piece_;                         // the last that was read
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_STORED_REFCOUNTS_H_
