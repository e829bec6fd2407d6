// A whole repair: check, plan, undo file, writes, check of the result.
#ifndef QCOW2CHECK_REPAIR_REPAIR_H_
#define QCOW2CHECK_REPAIR_REPAIR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checker/check.h"
#include "checker/report.h"
#include "common/image_file.h"
#include "repair/repair_plan.h"

namespace qcow2check {

enum class RepairStatus {
  kNone,      // nothing to repair
  kPlanned,   // dry run
  kDone,      // the check afterwards no longer finds it
  kDeclined,  // left as it is on purpose
  kFailed,    // planned, but still there
};
absl::string_view NameOf(RepairStatus status);

struct FindingRepair {
  RepairStatus status = RepairStatus::kNone;
  std::string reason;
};

struct RepairResult {
  Report before;
  Report after;  // of the image as it is on disk at the end; of a dry run: the same as `before`
  std::vector<FindingRepair> repairs;  // one for each of before.findings
  Plan plan;
  // What went wrong in the middle, or OK. The image may then be changed in part: undo gives back
  // what it was, and a repair can be started again.
  absl::Status status;
  bool changed = false;  // whether anything was written to the image
  uint64_t corruptions_fixed = 0;
  uint64_t leaks_fixed = 0;
};

// Makes the file for the undo log; called once, and only if something will be written. An error
// ends the repair before the image is touched. nullptr: --no-undo.
using OpenUndoFile = std::function<absl::StatusOr<std::unique_ptr<WritableImageFile>>()>;

// Plans without writing: what --dry-run shows.
RepairResult PlanRepair(const ImageFile& file, const CheckOptions& check,
                        const RepairOptions& options);

// Repairs the image in `file`, which the caller holds locked (LockForRepair) and has rolled back if
// a repair was interrupted (repair/undo_file.h). Reads back and compares the old bytes before each
// write; stops if they are not what was planned for. If nothing was `changed` after open_undo was
// called, the undo file is of no use.
RepairResult RepairImage(WritableImageFile& file, const CheckOptions& check,
                         const RepairOptions& options, const OpenUndoFile& open_undo);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_REPAIR_H_
