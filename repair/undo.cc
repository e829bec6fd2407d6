#include "repair/undo.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "common/digest.h"
#include "common/limits.h"
#include "repair/apply.h"
#include "repair/undo_log.h"

namespace qcow2check {
namespace {

using Bytes = std::vector<uint8_t>;

absl::Span<const uint8_t> SectorOf(const Bytes& bytes, size_t index) {
  return absl::MakeConstSpan(bytes).subspan(index * kSectorBytes, kSectorBytes);
}

// Whether the repair may have left the sector like this.
bool IsKnownVersion(absl::Span<const uint8_t> sector, const SectorVersions& versions,
                    bool finished) {
  const uint64_t digest = DigestOf(sector);
  const std::vector<uint64_t>& written = versions.written;
  if (finished ? !written.empty() && written.back() == digest
               : std::find(written.begin(), written.end(), digest) != written.end()) {
    return true;
  }
  return versions.discarded &&
         std::all_of(sector.begin(), sector.end(), [](uint8_t byte) { return byte == 0; });
}

// Then nobody knows what the log, or the image, is.
bool IsReadError(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsUnavailable(status);
}

// What the image is other than what the repair found, and other than what it left.
struct Differences {
  bool something = false;  // an undo would write
  bool header = false;     // the first bytes: the image may be another
  bool end = false;        // the length, or what lies behind the old end
  std::string first;       // that is not what the repair left, for users; empty if there is none
};

// Compares the image with the log.
class Verifier {
 public:
  Verifier(const ImageFile& image, const UndoLog& log)
      : image_(image), log_(log), identity_(log.identity_bytes) {}

  absl::Status Begin() {
    const uint64_t size = image_.size_bytes();
    differences_.something = size != log_.old_size_bytes;
    const bool finished = log_.state == UndoLogState::kFinished;
    const auto [low, high] = std::minmax(log_.old_size_bytes, log_.new_size_bytes);
    if (finished ? size != low && size != high : size < low || size > high) {
      differences_.end = true;
      differences_.first =
          absl::StrCat("the image is ", size, " bytes long; it was ", log_.old_size_bytes,
                       " before the repair and ", log_.new_size_bytes, " after it");
    }
    return image_.ReadAt(HostOffset{0}, absl::MakeSpan(identity_));
  }

  absl::Status Compare(const SectorHistory& history) {
    const uint64_t offset = history.offset_bytes;
    now_.resize(history.old_bytes.size());
    absl::Status status = image_.ReadAt(HostOffset{offset}, absl::MakeSpan(now_));
    if (!status.ok()) return status;
    for (size_t i = 0; i < history.sectors.size(); ++i) {
      if (SectorOf(now_, i) == SectorOf(history.old_bytes, i)) continue;
      differences_.something = true;
      if (!IsKnownVersion(SectorOf(now_, i), history.sectors[i],
                          log_.state == UndoLogState::kFinished)) {
        AddChanged(offset + i * kSectorBytes);
      }
    }
    if (offset < identity_.size()) {
      const uint64_t length = std::min(history.old_bytes.size(), identity_.size() - offset);
      std::memcpy(&identity_[offset], history.old_bytes.data(), length);
    }
    return absl::OkStatus();
  }

  // Behind all histories: the first bytes, as they will be when all is restored.
  Differences End() {
    if (DigestOf(identity_) != log_.identity_digest) differences_.header = true;
    return std::move(differences_);
  }

 private:
  void AddChanged(uint64_t sector_offset) {
    if (sector_offset < identity_.size()) differences_.header = true;
    if (sector_offset + kSectorBytes > log_.old_size_bytes) differences_.end = true;
    if (!differences_.first.empty()) return;
    differences_.first =
        absl::StrFormat("the image is not as the repair left it: 0x%x-0x%x was changed since",
                        sector_offset, sector_offset + kSectorBytes - 1);
  }

  const ImageFile& image_;
  const UndoLog& log_;
  Bytes identity_;
  Bytes now_;
  Differences differences_;
};

// The log must be whole, whatever the image is.
absl::StatusOr<Differences> Compare(const ImageFile& image, const ImageFile& file,
                                    const UndoLog& log) {
  Verifier verifier(image, log);
  absl::Status status = verifier.Begin();
  if (!status.ok()) return status;
  status = ForEachLoggedHistory(
      file, log, [&](const SectorHistory& history) { return verifier.Compare(history); });
  if (!status.ok()) return status;
  return verifier.End();
}

absl::Status MayRestore(const Differences& differences, const UndoOptions& options) {
  if (differences.header) {
    return absl::InvalidArgumentError(absl::StrCat(
        "nothing was undone: the undo file is of another image, or the header was changed since "
        "the repair",
        differences.first.empty() ? "" : "; ", differences.first));
  }
  if (differences.first.empty() || options.force) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("nothing was undone: ", differences.first));
}

// Writes the sectors that differ, neighbours at once.
absl::Status RestoreHistory(WritableImageFile& image, const SectorHistory& history,
                            uint64_t old_size_bytes, UndoResult& result) {
  Bytes now(history.old_bytes.size());
  absl::Status status = image.ReadAt(HostOffset{history.offset_bytes}, absl::MakeSpan(now));
  if (!status.ok()) return status;
  const auto differs = [&](size_t i) {
    return i < history.sectors.size() && SectorOf(now, i) != SectorOf(history.old_bytes, i);
  };
  for (size_t i = 0; i < history.sectors.size(); ++i) {
    if (!differs(i)) continue;
    const uint64_t begin = i * kSectorBytes;
    while (differs(i)) ++i;
    // What lies behind the old end goes when the file is cut there.
    const uint64_t offset = history.offset_bytes + begin;
    if (offset >= old_size_bytes) break;
    const uint64_t length = std::min(i * kSectorBytes - begin, old_size_bytes - offset);
    const auto old = absl::MakeConstSpan(history.old_bytes).subspan(begin, length);
    status = RestoreBytes(image, HostOffset{offset}, old);
    if (!status.ok()) return status;
    ++result.ranges;
    result.bytes += length;
  }
  return absl::OkStatus();
}

absl::Status Restore(WritableImageFile& image, const ImageFile& file, const UndoLog& log,
                     bool keep_end, UndoResult& result) {
  absl::Status status;
  if (image.size_bytes() < log.old_size_bytes) {
    status = RestoreSize(image, log.old_size_bytes);
    if (!status.ok()) return status;
  }
  status = ForEachLoggedHistory(file, log, [&](const SectorHistory& history) {
    return RestoreHistory(image, history, log.old_size_bytes, result);
  });
  if (!status.ok()) return status;
  // Cut only when nothing can need what is behind the end any more.
  if (result.ranges != 0) status = FlushRestored(image);
  if (!status.ok() || keep_end || image.size_bytes() == log.old_size_bytes) return status;
  status = RestoreSize(image, log.old_size_bytes);
  return status.ok() ? FlushRestored(image) : status;
}

}  // namespace

absl::StatusOr<bool> VerifyUndo(const ImageFile& image, const ImageFile& undo_log) {
  const absl::StatusOr<UndoLog> log = ReadUndoLog(undo_log);
  if (!log.ok()) return log.status();
  if (log->state == UndoLogState::kIncomplete) return false;
  const absl::StatusOr<Differences> differences = Compare(image, undo_log, *log);
  if (!differences.ok()) return differences.status();
  const absl::Status status = MayRestore(*differences, {});
  if (!status.ok()) return status;
  return differences->something;
}

absl::StatusOr<UndoResult> UndoRepair(WritableImageFile& image, const ImageFile& undo_log,
                                      const UndoOptions& options) {
  const absl::StatusOr<UndoLog> log = ReadUndoLog(undo_log);
  if (!log.ok()) return log.status();
  UndoResult result{.old_size_bytes = image.size_bytes()};
  result.repair_was_interrupted = log->state != UndoLogState::kFinished;
  if (log->state == UndoLogState::kIncomplete) {
    result.outcome = UndoOutcome::kNeverBegun;
    result.new_size_bytes = image.size_bytes();
    return result;
  }
  const absl::StatusOr<Differences> differences = Compare(image, undo_log, *log);
  if (!differences.ok()) return differences.status();
  absl::Status status = MayRestore(*differences, options);
  // What somebody has written behind the old end since is theirs.
  if (status.ok()) status = Restore(image, undo_log, *log, differences->end, result);
  if (!status.ok()) return status;
  result.forced = !differences->first.empty();
  result.new_size_bytes = image.size_bytes();
  if (result.ranges == 0 && result.old_size_bytes == result.new_size_bytes) {
    result.outcome = UndoOutcome::kNothingToDo;
  }
  return result;
}

absl::StatusOr<Leftover> RollBack(WritableImageFile& image, const ImageFile& undo_log) {
  const absl::StatusOr<UndoLog> log = ReadUndoLog(undo_log);
  if (IsReadError(log.status())) return log.status();
  if (!log.ok() || log->state == UndoLogState::kFinished) return Leftover::kNone;
  if (log->state == UndoLogState::kIncomplete) return Leftover::kUseless;
  const absl::Status fits = VerifyUndo(image, undo_log).status();
  if (IsReadError(fits)) return fits;
  if (!fits.ok()) return Leftover::kNone;
  const absl::StatusOr<UndoResult> undone = UndoRepair(image, undo_log, {});
  if (!undone.ok()) return undone.status();
  return Leftover::kRolledBack;
}

}  // namespace qcow2check
