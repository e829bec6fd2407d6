// How bitmaps are changed: each step leaves an image that the same repair can start from again.
//
// New structures are written to free space and flushed before anything leads to them. A bitmap is
// marked as in use, which makes it useless for backups, before anything of it is changed.
#ifndef QCOW2CHECK_REPAIR_BITMAP_WRITER_H_
#define QCOW2CHECK_REPAIR_BITMAP_WRITER_H_

#include <vector>

#include "checker/check_state.h"
#include "common/bitmap_entry.h"
#include "repair/bitmap_directory.h"
#include "repair/plan_builder.h"

namespace qcow2check {

class BitmapWriter {
 public:
  // Both must outlive this object. `state` is a check of plan.image().
  BitmapWriter(const CheckState& state, PlanBuilder& plan) : state_(state), plan_(plan) {}

  // Marks the bitmap as in use: it stays, with its name, but nobody trusts it. Its other flags, its
  // type and its granularity become possible if they are not.
  void MarkInUse(const BitmapEntry& entry, const PlanReason& reason);

  // A new directory with the entries `kept` (at least one). The bitmaps `emptied`, which it leaves
  // out, lose what their tables name, so that nobody takes these tables for something else.
  void WriteDirectory(const BitmapsPlace& place, const std::vector<BitmapEntry>& kept,
                      const std::vector<BitmapEntry>& emptied, const PlanReason& reason);

  // Only the extension changes.
  void SetExtension(const BitmapsPlace& place, const BitmapsExtension& fields,
                    const PlanReason& reason);

  // No bitmaps are left: the extension goes, if it is the last one, and is out of date otherwise.
  void DropAll(const std::optional<BitmapsPlace>& place, const PlanReason& reason);

 private:
  void SetConsistent(bool consistent, const PlanReason& reason);
  void EmptyTable(const BitmapEntry& entry, const PlanReason& reason);

  const CheckState& state_;
  PlanBuilder& plan_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_BITMAP_WRITER_H_
