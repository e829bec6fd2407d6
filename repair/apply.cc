#include "repair/apply.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/check.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "repair/patched_file.h"
#include "repair/undo_log.h"

namespace qcow2check {
namespace {

constexpr uint64_t kPieceBytes = 1 << 20;
constexpr uint64_t kPageBytes = 4096;

bool IsZero(absl::Span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

absl::Status ChangedMeanwhile(uint64_t begin_bytes, uint64_t end_bytes) {
  return absl::AbortedError(absl::StrFormat(
      "the image was changed by something else during the repair, between 0x%x and 0x%x",
      begin_bytes, end_bytes));
}

bool IsAsPlanned(const PlannedWrite& write, uint64_t from, absl::Span<const uint8_t> bytes) {
  return write.old_bytes.empty() ? IsZero(bytes)
                                 : std::equal(bytes.begin(), bytes.end(),
                                              write.old_bytes.begin() + static_cast<int64_t>(from));
}

// [from, from + length) of the write.
absl::Status ApplyPiece(WritableImageFile& image, const PlannedWrite& write, uint64_t from,
                        uint64_t length) {
  const HostOffset offset{write.offset_bytes + from};
  std::vector<uint8_t> bytes(length);
  absl::Status status = image.ReadAt(offset, absl::MakeSpan(bytes));
  if (!status.ok()) return status;
  if (!IsAsPlanned(write, from, bytes)) {
    return ChangedMeanwhile(offset.bytes, offset.bytes + length);
  }
  if (!write.copy_from_bytes) {
    return image.WriteAt(offset, absl::MakeConstSpan(write.new_bytes).subspan(from, length));
  }
  status = image.ReadAt(HostOffset{*write.copy_from_bytes + from}, absl::MakeSpan(bytes));
  return status.ok() ? image.WriteAt(offset, bytes) : status;
}

absl::Status ApplyAlone(WritableImageFile& image, const PlannedWrite& write) {
  for (uint64_t at = 0; at < write.length_bytes; at += kPieceBytes) {
    const absl::Status status =
        ApplyPiece(image, write, at, std::min(kPieceBytes, write.length_bytes - at));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// How many of the writes, at least one, are done as one: in ascending order, with nothing between
// them but what lies in the same sectors, which the disk writes as a whole and the undo log keeps.
size_t CountTogether(absl::Span<const PlannedWrite> writes) {
  const uint64_t begin = writes.front().offset_bytes;
  size_t count = 0;
  uint64_t end = begin;
  for (const PlannedWrite& write : writes) {
    const uint64_t next_end = write.offset_bytes + write.length_bytes;
    const bool adjoins = write.offset_bytes >= end &&
                         write.offset_bytes / kSectorBytes <= DivideRoundingUp(end, kSectorBytes);
    if (!adjoins || write.copy_from_bytes || next_end - begin > kPieceBytes) break;
    end = next_end;
    ++count;
  }
  return std::max<size_t>(count, 1);
}

absl::Status ApplyTogether(WritableImageFile& image, absl::Span<const PlannedWrite> writes) {
  const uint64_t begin = writes.front().offset_bytes;
  std::vector<uint8_t> bytes(writes.back().offset_bytes + writes.back().length_bytes - begin);
  absl::Status status = image.ReadAt(HostOffset{begin}, absl::MakeSpan(bytes));
  if (!status.ok()) return status;
  uint64_t done = 0;
  for (const PlannedWrite& write : writes) {
    const auto place =
        absl::MakeSpan(bytes).subspan(write.offset_bytes - begin, write.length_bytes);
    if (!IsAsPlanned(write, 0, place)) {
      status = ChangedMeanwhile(write.offset_bytes, write.offset_bytes + write.length_bytes);
      break;
    }
    std::copy(write.new_bytes.begin(), write.new_bytes.end(), place.begin());
    done = write.offset_bytes + write.length_bytes - begin;
  }
  if (done == 0) return status;
  const absl::Status written =
      image.WriteAt(HostOffset{begin}, absl::MakeConstSpan(bytes).first(done));
  return written.ok() ? status : written;
}

absl::Status ApplyWrites(WritableImageFile& image, absl::Span<const PlannedWrite> writes) {
  while (!writes.empty()) {
    const size_t count = CountTogether(writes);
    const absl::Status status =
        count > 1 ? ApplyTogether(image, writes.first(count)) : ApplyAlone(image, writes.front());
    if (!status.ok()) return status;
    writes.remove_prefix(count);
  }
  return absl::OkStatus();
}

// What the dirty and corrupt bits, which the closing step clears, add to the totals.
Totals WithoutClosingBits(const Report& report) {
  Totals totals = report.totals;
  for (const CodeTotal& row : report.code_totals) {
    if (row.code != FindingCode::kDirtyBit && row.code != FindingCode::kCorruptBit) continue;
    if (InfoOf(row.code).tally == Tally::kCorruptions) totals.corruptions -= row.count;
  }
  return totals;
}

// The last look before the image is declared sound.
absl::Status JudgeWhatIsLeft(const Report& report, const Totals& planned) {
  const Totals left = WithoutClosingBits(report);
  if (left.corruptions <= planned.corruptions && left.leaks <= planned.leaks &&
      left.check_errors <= planned.check_errors) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(
      "the image does not read back as it was written: ", left.corruptions, " corruptions, ",
      left.leaks, " leaks and ", left.check_errors, " check errors where ", planned.corruptions,
      ", ", planned.leaks, " and ", planned.check_errors, " were to be left"));
}

// The image, but what was written is data, as it was when the plan was made: some file systems make
// holes of zeros, and where tables lie in holes the check says that they were lost.
PatchedFile WithWritesAsData(const ImageFile& image, const Plan& plan) {
  PatchedFile file(image);
  for (const PlanStep& step : plan.steps) {
    for (const PlannedWrite& write : step.writes) {
      const uint64_t end = write.offset_bytes + write.length_bytes;
      for (uint64_t page = write.offset_bytes / kPageBytes * kPageBytes; page < end;
           page += kPageBytes) {
        if (!file.IsPatched(page, kPageBytes)) file.PatchCopy(page, page, kPageBytes);
      }
    }
  }
  return file;
}

absl::Status ApplyDiscards(WritableImageFile& image, const Plan& plan) {
  for (const Extent& discard : plan.discards) {
    const absl::Status status = image.Discard(discard);
    if (!status.ok()) return status;
  }
  return plan.discards.empty() ? absl::OkStatus() : image.Flush();
}

bool IsEmpty(const PlanStep& step) { return !step.grow_to_bytes && step.writes.empty(); }

absl::Status ApplyAll(WritableImageFile& image, const Plan& plan, const CheckOptions& check,
                      std::optional<Report>& report) {
  for (const PlanStep& step : plan.steps) {
    const absl::Status status = ApplyStep(image, step);
    if (!status.ok()) return status;
  }
  report = CheckImage(image, check);
  absl::Status status = JudgeWhatIsLeft(*report, plan.remaining);
  if (!status.ok() &&
      JudgeWhatIsLeft(CheckImage(WithWritesAsData(image, plan), check), plan.remaining).ok()) {
    status = absl::OkStatus();
  }
  if (status.ok() && IsEmpty(plan.closing) && plan.discards.empty()) return status;
  report.reset();
  if (status.ok()) status = ApplyStep(image, plan.closing);
  return status.ok() ? ApplyDiscards(image, plan) : status;
}

}  // namespace

absl::Status ApplyStep(WritableImageFile& image, const PlanStep& step) {
  if (IsEmpty(step)) return absl::OkStatus();
  if (step.grow_to_bytes && *step.grow_to_bytes > image.size_bytes()) {
    absl::Status status = image.Resize(*step.grow_to_bytes);
    // On disk before the refcounts and pointers of what comes there: nothing must lead behind the
    // end of the file.
    if (status.ok()) status = image.Flush();
    if (!status.ok()) return status;
  }
  const absl::Status status = ApplyWrites(image, step.writes);
  return status.ok() ? image.Flush() : status;
}

ApplyResult ApplyPlan(WritableImageFile& image, const Plan& plan, WritableImageFile* undo_log,
                      const CheckOptions& check) {
  if (image.size_bytes() != plan.old_size_bytes) {
    return {.status = absl::AbortedError(
                "the length of the image changed between the check and the repair")};
  }
  if (undo_log != nullptr) {
    absl::Status status = WriteUndoLog(*undo_log, image, plan);
    if (!status.ok()) return {.status = std::move(status)};
  }
  ApplyResult result{.changed = true};
  result.status = ApplyAll(image, plan, check, result.report);
  if (result.status.ok() && undo_log != nullptr) {
    if (absl::Status status = MarkFinished(*undo_log); !status.ok()) {
      result.status = absl::Status(
          status.code(), absl::StrCat("the repair is done, but its undo file could not be marked "
                                      "as finished: ",
                                      status.message()));
    }
  }
  return result;
}

absl::Status RestoreBytes(WritableImageFile& image, HostOffset offset,
                          absl::Span<const uint8_t> bytes) {
  return image.WriteAt(offset, bytes);
}

absl::Status RestoreSize(WritableImageFile& image, uint64_t size_bytes) {
  return image.Resize(size_bytes);
}

absl::Status FlushRestored(WritableImageFile& image) { return image.Flush(); }

}  // namespace qcow2check
