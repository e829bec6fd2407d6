// Where undo files lie: IMAGE.undo beside the image, or IMAGE.undo.1, IMAGE.undo.2, ... if that is
// taken; and what an interrupted repair has left in them.
#ifndef QCOW2CHECK_REPAIR_UNDO_FILE_H_
#define QCOW2CHECK_REPAIR_UNDO_FILE_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/image_file.h"
#include "common/writable_posix_file.h"

namespace qcow2check {

struct UndoFileName {
  std::string image_path;                  // empty: no undo file can lie beside the image
  std::optional<std::string> chosen_path;  // --undo-file; never numbered
};

// Beside the image that `path` leads to, so that an undo file is found whatever link is used;
// without a path if `path` is the URI of an export.
UndoFileName UndoFileNameOf(const std::string& path);

// If the log of an interrupted repair of this very image lies where `name` says, the image is given
// back as it was before that repair, and the log is removed: a repair that starts from there ends
// as the interrupted one would have ended. Logs of repairs that had not begun to write are removed,
// too. Whatever else is there stays. The path of the log that was rolled back, or nothing.
// `image` is locked (LockForRepair): no repair that is running can have written the logs.
absl::StatusOr<std::optional<std::string>> RollBackInterrupted(WritableImageFile& image,
                                                               const UndoFileName& name);

// The log that RollBackInterrupted would roll the image back with. Changes nothing.
std::optional<std::string> FindInterrupted(const ImageFile& image, const UndoFileName& name);

// The log of a finished repair that can be taken back now: no later one is in its way. Changes
// nothing.
std::optional<std::string> FindLastFinished(const ImageFile& image, const UndoFileName& name);

// Where CreateUndoFile would make the file, if it can. Both need a path of the image, or a chosen
// one.
std::string NextUndoPath(const UndoFileName& name);

struct UndoFile {
  std::string path;
  std::unique_ptr<WritablePosixFile> file;
};

// Makes a new undo file for the open image `image_fd` (-1: it is no file); kAlreadyExists if the
// chosen path is taken.
absl::StatusOr<UndoFile> CreateUndoFile(const UndoFileName& name, int image_fd);

// Removes the undo file of a repair that changed nothing.
absl::Status RemoveUndoFile(const std::string& path);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_UNDO_FILE_H_
