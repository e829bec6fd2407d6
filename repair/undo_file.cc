#include "repair/undo_file.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/nbd_file.h"
#include "common/posix_file.h"
#include "repair/undo.h"
#include "repair/undo_log.h"

namespace qcow2check {
namespace {

// More are refused: whoever has that many should clear up.
constexpr int kMaxNumber = 1000;

std::string NumberedPath(const std::string& image_path, int number) {
  const std::string path = absl::StrCat(image_path, ".undo");
  return number == 0 ? path : absl::StrCat(path, ".", number);
}

// All that may be undo files of the image, whatever the gaps between their numbers.
std::vector<std::string> ExistingFiles(const UndoFileName& name) {
  std::vector<std::string> paths;
  for (int number = 0; !name.image_path.empty() && number < kMaxNumber; ++number) {
    paths.push_back(NumberedPath(name.image_path, number));
  }
  if (name.chosen_path) paths.push_back(*name.chosen_path);
  std::erase_if(paths, [](const std::string& path) { return access(path.c_str(), F_OK) != 0; });
  return paths;
}

bool IsEmptyFile(const std::string& path) {
  struct stat info;
  return lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size == 0;
}

absl::StatusOr<Leftover> RollBackFrom(const std::string& path, WritableImageFile& image) {
  // Made by a repair that was interrupted before it wrote the first byte.
  if (IsEmptyFile(path)) return Leftover::kUseless;
  const absl::StatusOr<std::unique_ptr<PosixFile>> file = PosixFile::Open(path);
  if (file.ok()) return RollBack(image, **file);
  // Gone meanwhile, or no file. Otherwise it may be of an interrupted repair.
  const absl::Status& status = file.status();
  if (absl::IsNotFound(status) || absl::IsInvalidArgument(status)) return Leftover::kNone;
  return status;
}

std::optional<std::string> FindRestorable(const ImageFile& image, const UndoFileName& name,
                                          UndoLogState state) {
  for (std::string& path : ExistingFiles(name)) {
    const absl::StatusOr<std::unique_ptr<PosixFile>> file = PosixFile::Open(path);
    if (!file.ok()) continue;
    const absl::StatusOr<UndoLog> log = ReadUndoLog(**file);
    if (!log.ok() || log->state != state) continue;
    const absl::StatusOr<bool> restores = VerifyUndo(image, **file);
    // An interrupted repair may have changed nothing yet, or nothing any more.
    if (restores.ok() && (*restores || state == UndoLogState::kUnfinished)) return std::move(path);
  }
  return std::nullopt;
}

}  // namespace

UndoFileName UndoFileNameOf(const std::string& path) {
  if (IsNbdUri(path)) return {};
  std::error_code error;
  const std::filesystem::path image = std::filesystem::canonical(path, error);
  const bool is_link = std::filesystem::is_symlink(path, error);
  return {.image_path = is_link && !image.empty() ? image.string() : path, .chosen_path = {}};
}

absl::StatusOr<std::optional<std::string>> RollBackInterrupted(WritableImageFile& image,
                                                               const UndoFileName& name) {
  std::optional<std::string> rolled_back;
  for (const std::string& path : ExistingFiles(name)) {
    const absl::StatusOr<Leftover> leftover = RollBackFrom(path, image);
    if (!leftover.ok()) {
      return absl::Status(leftover.status().code(),
                          absl::StrCat("'", path, "': ", leftover.status().message()));
    }
    if (*leftover == Leftover::kNone) continue;
    if (absl::Status status = RemoveUndoFile(path); !status.ok()) return status;
    if (*leftover == Leftover::kRolledBack) rolled_back = path;
  }
  return rolled_back;
}

std::optional<std::string> FindInterrupted(const ImageFile& image, const UndoFileName& name) {
  return FindRestorable(image, name, UndoLogState::kUnfinished);
}

std::optional<std::string> FindLastFinished(const ImageFile& image, const UndoFileName& name) {
  return FindRestorable(image, name, UndoLogState::kFinished);
}

std::string NextUndoPath(const UndoFileName& name) {
  if (name.chosen_path) return *name.chosen_path;
  int number = 0;
  while (access(NumberedPath(name.image_path, number).c_str(), F_OK) == 0 && number < kMaxNumber) {
    ++number;
  }
  return NumberedPath(name.image_path, number);
}

absl::StatusOr<UndoFile> CreateUndoFile(const UndoFileName& name, int image_fd) {
  absl::Status status;
  for (int number = 0; number < kMaxNumber; ++number) {
    std::string path = name.chosen_path ? *name.chosen_path : NumberedPath(name.image_path, number);
    absl::StatusOr<std::unique_ptr<WritablePosixFile>> file =
        WritablePosixFile::Create(path, image_fd);
    if (file.ok()) return UndoFile{std::move(path), *std::move(file)};
    status = file.status();
    if (name.chosen_path || !absl::IsAlreadyExists(status)) break;
  }
  return absl::Status(status.code(), absl::StrCat("cannot make the undo file: ", status.message()));
}

absl::Status RemoveUndoFile(const std::string& path) {
  if (unlink(path.c_str()) == 0) return FlushFolderOf(path);
  return absl::UnavailableError(absl::StrCat("cannot remove '", path, "': ", std::strerror(errno)));
}

}  // namespace qcow2check
