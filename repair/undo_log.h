// The undo log: what a repair is going to change in an image, written to a file of its own before
// the image is touched. The format is described in docs/undo-file.md.
//
// For every sector that a plan changes the log has the bytes before, and a digest of each version
// that the sector takes on the way. So an undo can tell what a repair, finished or interrupted, has
// left from what somebody else wrote. Memory: one chunk, and one index entry for each write.
#ifndef QCOW2CHECK_REPAIR_UNDO_LOG_H_
#define QCOW2CHECK_REPAIR_UNDO_LOG_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/image_file.h"
#include "repair/repair_plan.h"
#include "repair/sector_history.h"

namespace qcow2check {

// --- Writing ---

// Writes the whole log of `plan` to the empty `file` and flushes it. The image is only read.
// kAborted if it does not hold the bytes that the plan expects; otherwise errors are those of
// reading the image and writing the log. The image may be changed only after this returned OK.
absl::Status WriteUndoLog(WritableImageFile& file, const ImageFile& image, const Plan& plan);

// Marks the log: all that the plan wants was written. Needs no new space.
absl::Status MarkFinished(WritableImageFile& file);

// --- Reading ---

enum class UndoLogState {
  kIncomplete,  // not written to its end: the repair had not begun to change the image
  kUnfinished,  // the repair was interrupted
  kFinished,
};

struct UndoLog {
  UndoLogState state = UndoLogState::kIncomplete;
  // All below: only if the log is complete.
  uint64_t old_size_bytes = 0;  // of the image, before and after the repair
  uint64_t new_size_bytes = 0;
  // The first bytes of the image before the repair: tells images apart.
  uint64_t identity_bytes = 0;
  uint64_t identity_digest = 0;
  uint64_t records = 0;
  uint64_t records_bytes = 0;
};

// kInvalidArgument if `file` is no undo file, of a later version, or damaged; other errors are of
// reading it.
absl::StatusOr<UndoLog> ReadUndoLog(const ImageFile& file);

// Calls `visit` for each history in the log, in the order of their offsets, without overlaps; stops
// at its first error. kInvalidArgument if a record is damaged or missing.
absl::Status ForEachLoggedHistory(const ImageFile& file, const UndoLog& log,
                                  absl::FunctionRef<absl::Status(const SectorHistory&)> visit);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_UNDO_LOG_H_
