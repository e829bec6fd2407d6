// Puts a plan together: writes go into it and, at once, into the image as it will be.
#ifndef QCOW2CHECK_REPAIR_PLAN_BUILDER_H_
#define QCOW2CHECK_REPAIR_PLAN_BUILDER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "common/finding.h"
#include "common/geometry.h"
#include "common/image_file.h"
#include "repair/extent_set.h"
#include "repair/patched_file.h"
#include "repair/repair_plan.h"

namespace qcow2check {

class PlanBuilder {
 public:
  // `file` must outlive this object.
  PlanBuilder(const ImageFile& file, const RepairOptions& options);

  // A builder with all that is planned here, for another part of the plan, which begins with what
  // the image will be then, as a repair after this one would.
  // `grows_in_doubt`: new structures may lie behind the end of the file even if tables that are not
  // found yet may lead there.
  PlanBuilder NextPart(bool grows_in_doubt) const;

  const RepairOptions& options() const { return options_; }
  // The image as it will be after all writes so far.
  const PatchedFile& image() const { return image_; }
  bool grows_in_doubt() const { return part_.grows_in_doubt; }
  // The length of the file before this part of the plan.
  uint64_t old_size_bytes() const { return part_.before.size_bytes(); }
  // Whether the repair removes what shows that orphans may be the only copy of something: damaged
  // pointers, or that two guest ranges share a cluster.
  bool removes_evidence() const { return part_.expects_losses || part_.gives_up_evidence; }
  // The same, but only what the writes planned so far remove.
  bool gives_up_evidence() const { return part_.gives_up_evidence; }
  // Set if the image had damaged pointers before the repair: orphans may be what they led to.
  void ExpectLosses() { part_.expects_losses = true; }
  // Whether the file had been cut off before the repair, whatever the repair has set right by now.
  void SetCutOff(bool was_cut_off) { part_.was_cut_off = was_cut_off; }
  bool was_cut_off() const { return part_.was_cut_off; }
  // Ranges of refcounts, by their index in the refcount table, that had a block which cannot be
  // found any more and was made anew: orphans may be the old blocks.
  void ExpectOldBlock(uint64_t table_index) { part_.old_blocks.insert(table_index); }
  const absl::btree_set<uint64_t>& old_blocks() const { return part_.old_blocks; }
  // Those that the block at `offset_bytes` may have been of: writers put a block into its own
  // range, or at the end of the one before.
  std::vector<uint64_t> OldBlocksNear(uint64_t offset_bytes, const Geometry& geometry) const;
  // Grows with each read that fails, by way of this object or of image().
  uint64_t failed_reads() const { return image_.failed_reads(); }
  // Grows with each write that changes something.
  uint64_t writes() const { return writes_; }
  // How much more may be copied: no accident shares more than the image has.
  uint64_t copies_left_bytes() const { return copies_left_bytes_; }

  // Everything planned from now on waits until what was planned before is on disk.
  void Flush();
  // The same before the next lossy write: what is given up may be a part of the evidence for what
  // was proven, which must be on disk by then.
  void FlushBeforeLoss() { flush_before_loss_ = true; }

  // Plans a write, unless the bytes are there already. Does nothing, and declines the finding, if
  // what is there now cannot be read.
  void Write(uint64_t offset_bytes, absl::Span<const uint8_t> bytes, const PlanReason& reason);
  void Write64(uint64_t offset_bytes, uint64_t value, const PlanReason& reason);
  // As Write, but as early as can be: before everything else in the plan, or behind the last step
  // that writes the same bytes. For refcounts that are raised: they are on disk before any pointer
  // that needs them.
  void WriteFirst(uint64_t offset_bytes, absl::Span<const uint8_t> bytes, const PlanReason& reason);
  // Only when a check has shown that all the rest is right.
  void WriteLast(uint64_t offset_bytes, absl::Span<const uint8_t> bytes, const PlanReason& reason);
  // Copies a cluster of guest data, which the plan changes nowhere, to where only zeros are now.
  void CopyData(uint64_t from_bytes, uint64_t to_bytes, uint64_t length_bytes,
                const PlanReason& reason);
  // Copies what is there before this part of the plan, even if the part changes it: bytes that the
  // guest reads as data and that are metadata, too.
  void CopyOriginal(uint64_t from_bytes, uint64_t to_bytes, uint64_t length_bytes,
                    const PlanReason& reason);
  // Makes the file at least this long, before the writes of the current step.
  void GrowTo(uint64_t size_bytes);
  // The file is `size_bytes` long again, as it was before a planner took room at the end that in
  // the end it wrote nothing to.
  void TakeBackGrowth(uint64_t size_bytes);

  // Says once that a finding is left as it is.
  void Decline(FindingCode code, std::optional<HostOffset> host_offset, std::string reason);
  void AddLostRange(uint64_t guest_offset_bytes, uint64_t length_bytes);
  void AddFreed(const Extent& extent) { freed_.push_back(extent); }

  // The finished plan.
  Plan Take() &&;

 private:
  // A step, and what its writes touch.
  struct BuiltStep {
    PlanStep step;
    ExtentSet touched;
    void Add(PlannedWrite write) {
      touched.Add(write.offset_bytes, write.offset_bytes + write.length_bytes);
      step.writes.push_back(std::move(write));
    }
  };

  // What is known of the image as a part of the plan finds it, and what is only for that part.
  struct Part {
    PatchedFile before;
    bool grows_in_doubt = true;
    bool expects_losses = false;
    bool was_cut_off = false;
    bool gives_up_evidence = false;
    absl::btree_set<uint64_t> old_blocks;
    absl::flat_hash_set<std::pair<FindingCode, uint64_t>> declined;
  };

  BuiltStep& CurrentStep();
  // How long the file is before all steps_.
  uint64_t EndOfFirst() const { return first_.grow_to_bytes.value_or(plan_.old_size_bytes); }
  // The position in steps_ behind the last step that writes any of these bytes, or makes the file
  // long enough for them.
  size_t StepBehind(uint64_t offset_bytes, uint64_t length_bytes) const;
  // The write, in image_ already, a part for each stretch of sectors that changes; nothing if the
  // bytes are there, or what is there cannot be read.
  std::vector<PlannedWrite> MakeWrites(uint64_t offset_bytes, absl::Span<const uint8_t> bytes,
                                       const PlanReason& reason);

  const RepairOptions options_;
  PatchedFile image_;
  Part part_;
  PlanStep first_;
  std::vector<BuiltStep> steps_;
  bool new_step_ = true;
  bool flush_before_loss_ = false;
  std::optional<size_t> raising_step_;  // the last that WriteFirst put between others
  uint64_t writes_ = 0;
  uint64_t copies_left_bytes_;
  std::vector<Extent> freed_;
  GuestRanges lost_;
  Plan plan_;
};

// The reason for a write that serves `finding`; action and safety are those of its code.
PlanReason ReasonFor(const Finding& finding, std::string text);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_PLAN_BUILDER_H_
