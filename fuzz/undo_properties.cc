// The properties of an undo: see fuzz/properties.h.
#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/memory_file.h"
#include "fuzz/properties.h"
#include "repair/undo.h"
#include "repair/undo_log.h"
#include "tests/plain_promises.h"

namespace qcow2check::testing {
namespace {

class UndoTrial {
 public:
  explicit UndoTrial(const UndoInput& input)
      : image_(input.image), file_(input.log), log_(ReadUndoLog(file_)) {}

  std::string Run() && {
    LookAtUndo();
    LookAtForce();
    LookAtRollBack();
    return std::move(broken_);
  }

 private:
  void LookAtUndo() {
    const absl::StatusOr<bool> verified = VerifyUndo(image_, file_);
    SparseFile image = image_;
    const absl::StatusOr<UndoResult> undone = UndoRepair(image, file_, {});
    const bool restored = undone.ok() && undone->outcome == UndoOutcome::kRestored;
    if (verified.ok() != undone.ok() || verified.value_or(false) != restored) {
      AddBroken("Undo does what was verified", undone.status().ToString(), broken_);
    }
    if (!restored) {
      Unchanged("An image that a log does not belong to is not written", image);
      return;
    }
    if (image.size_bytes() != log_->old_size_bytes) {
      AddBroken("Undo gives back the old length", absl::StrCat(image.size_bytes()), broken_);
    }
    if (DigestOf(image.Bytes(0, log_->identity_bytes)) != log_->identity_digest) {
      AddBroken("Undo gives back the image that the log is of", "other first bytes", broken_);
    }
    const SparseFile once = image;
    const absl::StatusOr<UndoResult> again = UndoRepair(image, file_, {});
    if (!again.ok() || again->outcome != UndoOutcome::kNothingToDo || !(image == once)) {
      AddBroken("Once is enough", again.status().ToString(), broken_);
    }
  }

  void LookAtForce() {
    SparseFile image = image_;
    const absl::StatusOr<UndoResult> undone = UndoRepair(image, file_, {.force = true});
    if (!undone.ok()) {
      Unchanged("A damaged log, or that of another image, is not used", image);
      return;
    }
    if (undone->outcome == UndoOutcome::kNeverBegun) return;
    if (image.size_bytes() != log_->old_size_bytes &&
        !(undone->forced && image.size_bytes() == image_.size_bytes())) {
      AddBroken("Undo gives back the old length, or keeps it", absl::StrCat(image.size_bytes()),
                broken_);
    }
    if (DigestOf(image.Bytes(0, log_->identity_bytes)) != log_->identity_digest) {
      AddBroken("Force gives back the image that the log is of", "other first bytes", broken_);
    }
  }

  void LookAtRollBack() {
    SparseFile image = image_;
    const absl::StatusOr<Leftover> leftover = RollBack(image, file_);
    if (!leftover.ok()) {
      AddBroken("What was verified can be rolled back", leftover.status().ToString(), broken_);
    } else if (*leftover != Leftover::kRolledBack) {
      Unchanged("Only an interrupted repair is rolled back", image);
    } else if (log_->state != UndoLogState::kUnfinished) {
      AddBroken("Only an interrupted repair is rolled back", "it was finished", broken_);
    }
  }

  void Unchanged(const char* property, const SparseFile& image) {
    if (!(image == image_)) AddBroken(property, "it was changed", broken_);
  }

  const SparseFile& image_;
  const MemoryFile file_;
  const absl::StatusOr<UndoLog> log_;
  std::string broken_;
};

}  // namespace

std::string BrokenByUndo(const UndoInput& input) { return UndoTrial(input).Run(); }

}  // namespace qcow2check::testing
