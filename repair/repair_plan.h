// A repair plan: everything that a repair writes, in the order in which it may be written, each
// write with what was there before and with the finding it serves. A plan is plain data: made by
// MakePlan (repair/plan.h), shown by --dry-run, carried out by ApplyPlan (repair/apply.h).
#ifndef QCOW2CHECK_REPAIR_REPAIR_PLAN_H_
#define QCOW2CHECK_REPAIR_REPAIR_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checker/report.h"
#include "common/finding.h"
#include "common/guest_ranges.h"
#include "common/image_file.h"

namespace qcow2check {

enum class RepairMode {
  kLeaks,  // frees proven leaks and sets the COPIED flags that follow; nothing while there is
           // corruption
  kAll,
};

struct RepairOptions {
  RepairMode mode = RepairMode::kAll;
  bool free_orphans = false;  // also free what may be the only copy of something
  bool discard = false;       // punch holes where clusters were freed
  bool fixed_size = false;    // the file is a device: new structures must find room inside
};

// Why something is written.
struct PlanReason {
  FindingCode code{};                        // the finding it serves
  std::optional<HostOffset> finding_offset;  // where that finding is, if it has a place
  RepairAction action = RepairAction::kNoAction;
  RepairSafety safety = RepairSafety::kLossless;
  std::string text;  // one plain sentence without a full stop: what and on what evidence
};

struct PlannedWrite {
  PlanReason reason;
  uint64_t offset_bytes = 0;
  uint64_t length_bytes = 0;
  // What must be there when this write's turn comes (earlier writes of the plan included). Empty:
  // zeros. Otherwise length_bytes long.
  std::vector<uint8_t> old_bytes;
  // What is written; length_bytes long. Empty if copy_from_bytes is set: then the bytes are those
  // that are there, a stretch of data that the plan changes nowhere.
  std::vector<uint8_t> new_bytes;
  std::optional<uint64_t> copy_from_bytes;
};

// Writes that may reach the disk in any order. Before the next step everything is flushed.
struct PlanStep {
  std::optional<uint64_t> grow_to_bytes;  // makes the file this long before the writes
  std::vector<PlannedWrite> writes;
};

// A finding that is left as it is, and why.
struct DeclinedRepair {
  FindingCode code{};
  std::optional<HostOffset> host_offset;  // nothing: all findings of the code
  std::string reason;
};

struct Plan {
  uint64_t old_size_bytes = 0;  // of the file, before and after
  uint64_t new_size_bytes = 0;
  std::vector<PlanStep> steps;
  // The dirty and corrupt bits: written only when a check of the disk has shown that all steps
  // have done what they were meant to.
  PlanStep closing;
  std::vector<Extent> discards;  // with RepairOptions::discard: punched last of all
  std::vector<DeclinedRepair> declined;
  std::string refused;  // why nothing at all is planned although there is damage; usually empty
  std::vector<GuestRange> lost_guest_ranges;  // what reads as zeros from now on
  // The findings that remain, as a check of the repaired image will count them.
  Totals remaining;
  HeldBack held_back;

  bool empty() const { return steps.empty() && closing.writes.empty() && discards.empty(); }
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_REPAIR_PLAN_H_
