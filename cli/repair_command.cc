#include "cli/repair_command.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cli/shell_command.h"
#include "common/digest.h"
#include "common/image_lock.h"
#include "common/nbd_file.h"
#include "common/open_image.h"
#include "repair/undo_file.h"

namespace qcow2check {
namespace {

bool IsBlockDevice(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_block_file(path, ignored);
}

UndoFileName UndoFileNameFor(const std::string& path, const CheckCommandOptions& command) {
  UndoFileName name = UndoFileNameOf(path);
  if (!command.undo_file.empty()) name.chosen_path = command.undo_file;
  return name;
}

// Why there can be no undo file of that name; empty if there can.
absl::string_view WhyNotThere(const UndoFileName& name) {
  if (name.chosen_path) return "";
  if (name.image_path.empty()) {
    return "the undo file of an image on an NBD server cannot lie beside it";
  }
  if (!IsBlockDevice(name.image_path)) return "";
  return "the undo file of a device cannot lie beside it, where it would not survive a restart";
}

// The command line that does what `command` asks for, without --dry-run.
std::string CommandLineFor(const std::string& path, const CheckCommandOptions& command) {
  std::string words = command.repair == RepairMode::kAll ? "--repair" : "--repair=leaks";
  if (!command.undo_file.empty()) {
    absl::StrAppend(&words, " --undo-file=", ShellQuoted(command.undo_file));
  }
  if (command.no_undo) absl::StrAppend(&words, " --no-undo");
  if (command.free_orphans) absl::StrAppend(&words, " --free-orphans");
  if (command.discard) absl::StrAppend(&words, " --discard");
  return CommandLine(words, {path});
}

// Of [offset, offset + length) in the file; of zeros from where it cannot be read.
uint64_t DigestOfRange(const ImageFile& file, uint64_t offset_bytes, uint64_t length_bytes) {
  std::vector<uint8_t> buffer(std::min<uint64_t>(length_bytes, 1 << 20));
  Digest digest;
  for (uint64_t done = 0; done < length_bytes;) {
    const auto piece =
        absl::MakeSpan(buffer).first(std::min<uint64_t>(buffer.size(), length_bytes - done));
    if (!file.ReadAt(HostOffset{offset_bytes + done}, piece).ok()) {
      std::fill(piece.begin(), piece.end(), 0);
    }
    digest.Add(piece);
    done += piece.size();
  }
  return digest.value();
}

void AddDigests(const ImageFile& file, RepairOutcome& repair) {
  // Where a copy was made its source may be a hole by now.
  const bool done = repair.result.changed && repair.result.status.ok();
  ForEachWrite(repair.result.plan, [&](uint64_t, const PlannedWrite& write) {
    const uint64_t from = done ? write.offset_bytes : write.copy_from_bytes.value_or(0);
    repair.new_digests.push_back(write.copy_from_bytes
                                     ? DigestOfRange(file, from, write.length_bytes)
                                     : DigestOf(write.new_bytes));
  });
}

RepairOutcome StartOutcome(const std::string& path, const CheckCommandOptions& command) {
  RepairOutcome repair;
  repair.options = {.mode = *command.repair,
                    .free_orphans = command.free_orphans,
                    .discard = command.discard,
                    .fixed_size = IsBlockDevice(path) || IsNbdUri(path)};
  repair.dry_run = command.dry_run;
  repair.no_undo = command.no_undo;
  repair.command_line = CommandLineFor(path, command);
  return repair;
}

// What is the same at the end of a repair and of a dry run.
ImageOutcome Finish(const std::string& path, const ImageFile& file, const ImageId& id,
                    const CheckOptions& check, const CheckCommandOptions& command,
                    RepairOutcome repair) {
  ImageOutcome outcome;
  if (command.json) AddDigests(file, repair);
  if (command.chain) outcome.chain = CheckChain(path, id, check, repair.result.after);
  outcome.report = repair.result.after;
  outcome.repair = std::move(repair);
  outcome.exit_code = ExitCodeOf(outcome.report);
  return outcome;
}

ImageOutcome PlanOne(const std::string& path, const CheckCommandOptions& command) {
  const absl::StatusOr<OpenedImage> image = OpenToRead(path);
  if (!image.ok()) return CouldNotCheck(image.status().message());
  const absl::Status lock = LockForCheck(image->lock_fd, path, /*force_share=*/false);
  if (!lock.ok()) return CouldNotCheck(lock.message(), Verdict::kLocked);
  const ImageFile& file = *image->file;
  const CheckOptions check = CheckOptionsFor(path, file, command);
  RepairOutcome repair = StartOutcome(path, command);
  repair.result = PlanRepair(file, check, repair.options);
  const absl::Status there = file.availability();
  if (!there.ok()) return CouldNotCheck(absl::StrCat("'", path, "': ", there.message()));
  const UndoFileName name = UndoFileNameFor(path, command);
  if (!command.no_undo && !repair.result.plan.empty()) {
    const absl::string_view why_not = WhyNotThere(name);
    if (why_not.empty()) {
      repair.undo_file = NextUndoPath(name);
    } else {
      repair.notes.push_back(absl::StrCat(why_not, ": name one with --undo-file=PATH"));
      CheckCommandOptions with_place = command;
      with_place.undo_file = "PATH";
      repair.command_line = CommandLineFor(path, with_place);
    }
  }
  if (const auto interrupted = FindInterrupted(file, name)) {
    repair.notes.push_back(absl::StrCat(
        "a repair of this image was interrupted; --repair would first take it back with '",
        *interrupted, "', and then plan anew"));
  }
  return Finish(path, file, image->id, check, command, std::move(repair));
}

// The length that the file had when it was opened: nobody can have changed it since it was locked.
// An export never changes it.
bool HasLength(int fd, uint64_t size_bytes) {
  struct stat info;
  if (fd < 0) return true;
  return fstat(fd, &info) == 0 &&
         (!S_ISREG(info.st_mode) || static_cast<uint64_t>(info.st_size) == size_bytes);
}

// The undo file of one repair: made when the repair asks for it.
class UndoFileMaker {
 public:
  UndoFileMaker(UndoFileName name, int image_fd) : name_(std::move(name)), image_fd_(image_fd) {}

  absl::StatusOr<std::unique_ptr<WritableImageFile>> Make() {
    const absl::string_view why_not = WhyNotThere(name_);
    if (!why_not.empty()) return absl::InvalidArgumentError(why_not);
    absl::StatusOr<UndoFile> undo = CreateUndoFile(name_, image_fd_);
    if (!undo.ok()) return undo.status();
    path_ = undo->path;
    return std::move(undo->file);
  }

  // Empty if there is none.
  const std::string& path() const { return path_; }

  void RemoveUseless() {
    if (!path_.empty() && RemoveUndoFile(path_).ok()) path_.clear();
  }

 private:
  UndoFileName name_;
  int image_fd_;
  std::string path_;
};

// `may_be_undo_file`: what could not be written may be the undo file.
std::string ErrorSentence(const std::string& path, const RepairOutcome& repair,
                          bool may_be_undo_file) {
  const RepairResult& result = repair.result;
  std::string error = absl::StrCat("the repair of '", path, "' stopped: ", result.status.message());
  if (!result.changed) {
    // The undo file is all that was written up to then.
    const bool undo_file = may_be_undo_file && !absl::IsAborted(result.status);
    return absl::StrCat(error, "; nothing was changed",
                        undo_file ? "; --undo-file=PATH keeps the undo file elsewhere, --no-undo "
                                    "does without"
                                  : "");
  }
  absl::StrAppend(&error, "; the image is changed in part; ");
  if (!repair.undo_file.empty()) {
    absl::StrAppend(&error, "take it back with `", CommandLine("undo", {repair.undo_file, path}),
                    "` or ");
  }
  return absl::StrCat(error, "start the repair again with `", repair.command_line, "`");
}

}  // namespace

ImageOutcome RepairOne(const std::string& path, const CheckCommandOptions& command) {
  if (command.dry_run) return PlanOne(path, command);
  const absl::StatusOr<OpenedWritableImage> image = OpenToWrite(path);
  if (!image.ok()) return CouldNotCheck(image.status().message());
  const absl::Status lock = LockForRepair(image->lock_fd, path);
  if (!lock.ok()) return CouldNotCheck(lock.message(), Verdict::kLocked);
  WritableImageFile& file = *image->file;
  if (!HasLength(image->lock_fd, file.size_bytes())) {
    return CouldNotCheck(absl::StrCat("'", path, "' was changed while it was opened"),
                         Verdict::kLocked);
  }
  const UndoFileName name = UndoFileNameFor(path, command);
  RepairOutcome repair = StartOutcome(path, command);
  const absl::StatusOr<std::optional<std::string>> rolled_back = RollBackInterrupted(file, name);
  if (!rolled_back.ok()) {
    return CouldNotCheck(
        absl::StrCat("'", path, "': what an earlier repair may have left cannot be taken back: ",
                     rolled_back.status().message()));
  }
  if (*rolled_back) {
    repair.notes.push_back(absl::StrCat(
        "an earlier repair was interrupted; it was taken back with '", **rolled_back, "' first"));
  }
  const CheckOptions check = CheckOptionsFor(path, file, command);
  UndoFileMaker undo(name, image->lock_fd);
  OpenUndoFile open_undo;
  if (!command.no_undo) open_undo = [&undo] { return undo.Make(); };
  repair.result = RepairImage(file, check, repair.options, open_undo);
  const absl::Status there = file.availability();
  repair.result.status.Update(there);
  if (!repair.result.changed) undo.RemoveUseless();
  repair.undo_file = undo.path();
  const bool failed = !repair.result.status.ok();
  const std::string error =
      failed ? ErrorSentence(path, repair, !command.no_undo && there.ok()) : "";
  if (failed) {
    ++repair.result.after.totals.check_errors;
    repair.result.after.verdict = Verdict::kIncomplete;
  }
  ImageOutcome outcome = Finish(path, file, image->id, check, command, std::move(repair));
  outcome.error = error;
  return outcome;
}

}  // namespace qcow2check
