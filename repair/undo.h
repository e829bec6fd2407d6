// Undo: gives back the image as it was before a repair, byte for byte, from the repair's undo log.
//
// Works for repairs that finished and for those that were interrupted anywhere; can be interrupted
// itself and run again. The caller holds the image locked.
#ifndef QCOW2CHECK_REPAIR_UNDO_H_
#define QCOW2CHECK_REPAIR_UNDO_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/image_file.h"

namespace qcow2check {

struct UndoOptions {
  // Put the old bytes back even if the image is not what the repair left; what was written since
  // in the same places is lost. Not if the header differs: the image may be another. What was
  // written behind the old end stays, and with it the length.
  bool force = false;
};

enum class UndoOutcome {
  kRestored,
  kNothingToDo,  // the image is as it was before the repair
  kNeverBegun,   // the log was never finished, so the repair had not begun to change the image
};

struct UndoResult {
  UndoOutcome outcome = UndoOutcome::kRestored;
  bool repair_was_interrupted = false;
  bool forced = false;  // the image was changed since, so it is not as it was before the repair
  uint64_t ranges = 0;  // restored, and their bytes
  uint64_t bytes = 0;
  uint64_t old_size_bytes = 0;  // the length of the image, found and restored
  uint64_t new_size_bytes = 0;
};

// OK if the log is whole, the image is the one that it is of, and every sector is as the repair
// found or left it (or, if it was interrupted, in between): then, whether an undo would write
// anything. Reads both; writes nothing.
absl::StatusOr<bool> VerifyUndo(const ImageFile& image, const ImageFile& undo_log);

// Verifies first. kFailedPrecondition, with the first range that differs and nothing changed, if
// the image is not what the repair left; `force` overrides that. kInvalidArgument, force or not, if
// the log is damaged or of another image.
absl::StatusOr<UndoResult> UndoRepair(WritableImageFile& image, const ImageFile& undo_log,
                                      const UndoOptions& options);

// What a repair that starts finds of one before it.
enum class Leftover {
  kNone,        // no log, or not one to be touched: finished, damaged, of another image, or the
                // image was changed since
  kUseless,     // of a repair that had not begun to change the image
  kRolledBack,  // of an interrupted repair, which is undone now; of no more use
};

// If `undo_log` is that of an interrupted repair of this very image, undoes that repair: a repair
// that starts from there ends as the interrupted one would have ended. An error if that fails, and
// if the log or the image cannot be read: then there may be one.
absl::StatusOr<Leftover> RollBack(WritableImageFile& image, const ImageFile& undo_log);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_UNDO_H_
