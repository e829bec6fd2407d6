#include "tests/plain_promises.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "repair/undo.h"

namespace qcow2check::testing {
namespace {

// A file whose content outlives it.
class KeptFile : public SparseFile {
 public:
  explicit KeptFile(SparseFile& kept) : kept_(kept) {}
  ~KeptFile() override { kept_ = std::move(*this); }

 private:
  SparseFile& kept_;
};

// --- Findings ---

bool IsCutOff(const Report& report, FindingCode code) {
  return std::any_of(
      report.code_totals.begin(), report.code_totals.end(),
      [&](const CodeTotal& row) { return row.code == code && row.findings > kMostListed; });
}

bool Overlap(const Finding& finding, HostOffset begin, uint64_t length) {
  if (!finding.host_offset.has_value()) return true;
  const uint64_t own_begin = finding.host_offset->bytes;
  const uint64_t own_last =
      SaturatingAdd(own_begin, std::max<uint64_t>(finding.length_bytes, 1) - 1);
  const uint64_t last = SaturatingAdd(begin.bytes, std::max<uint64_t>(length, 1) - 1);
  return begin.bytes <= own_last && own_begin <= last;
}

// Whether the result gives a reason why this is still there: for the finding that was there before,
// or for what the plan came upon.
bool IsDeclined(const RepairResult& result, const Finding& finding) {
  for (const DeclinedRepair& row : result.plan.declined) {
    if (row.code != finding.code || row.reason.empty()) continue;
    if (!row.host_offset.has_value() || Overlap(finding, *row.host_offset, 1)) return true;
  }
  if (IsCutOff(result.before, finding.code)) return true;
  for (size_t i = 0; i < result.before.findings.size(); ++i) {
    const Finding& before = result.before.findings[i];
    if (before.code != finding.code || result.repairs[i].status != RepairStatus::kDeclined)
      continue;
    if (result.repairs[i].reason.empty()) continue;
    if (!before.host_offset || Overlap(finding, *before.host_offset, before.length_bytes))
      return true;
  }
  return false;
}

std::string Words(const Finding& finding) {
  return absl::StrCat(InfoOf(finding.code).name, " at 0x",
                      absl::Hex(finding.host_offset.value_or(HostOffset{0}).bytes));
}

std::string Words(const Totals& totals) {
  return absl::StrFormat("%d corruptions, %d leaks, %d check errors", totals.corruptions,
                         totals.leaks, totals.check_errors);
}

bool SameTotals(const Totals& one, const Totals& other) {
  return one.corruptions == other.corruptions && one.leaks == other.leaks &&
         one.check_errors == other.check_errors;
}

// --- The plan ---

bool IsThere(const PlannedWrite& write, const SparseFile& image) {
  const std::vector<uint8_t> now = image.Bytes(write.offset_bytes, write.length_bytes);
  if (!write.old_bytes.empty()) return now == write.old_bytes;
  return std::all_of(now.begin(), now.end(), [](uint8_t byte) { return byte == 0; });
}

// The image after the plan's writes, carried out by hand; a line for each that does not find what
// the plan says is there.
std::string ApplyByHand(const Plan& plan, SparseFile& image) {
  std::string wrong;
  std::vector<PlanStep> steps = plan.steps;
  steps.push_back(plan.closing);
  for (const PlanStep& step : steps) {
    if (step.grow_to_bytes.has_value() && !image.Resize(*step.grow_to_bytes).ok()) return "size\n";
    const SparseFile before = image;
    for (const PlannedWrite& write : step.writes) {
      if (write.offset_bytes + write.length_bytes > image.size_bytes()) {
        return absl::StrCat("a write at 0x", absl::Hex(write.offset_bytes), " past the end\n");
      }
      if (!IsThere(write, image)) {
        absl::StrAppend(&wrong, "not the old bytes of the plan at 0x",
                        absl::Hex(write.offset_bytes), "\n");
      }
      const std::vector<uint8_t> bytes =
          write.copy_from_bytes.has_value()
              ? before.Bytes(*write.copy_from_bytes, write.length_bytes)
              : write.new_bytes;
      QCOW2CHECK_CHECK(image.WriteAt(HostOffset{write.offset_bytes}, bytes).ok());
    }
  }
  for (const Extent& discard : plan.discards) QCOW2CHECK_CHECK(image.Discard(discard).ok());
  return wrong;
}

// --- The promises ---

void LookAtEnd(const RepairRun& run, std::string& broken) {
  if (!run.result.status.ok()) {
    AddBroken("A repair comes to its end", run.result.status.ToString(), broken);
  }
  if (run.after.size_bytes() < run.before.size_bytes()) {
    AddBroken("No file is cut", "it is shorter now", broken);
  }
}

void LookAtDryRun(const RepairRun& run, std::string& broken) {
  const RepairResult planned = PlanRepair(run.before, ListMost(), run.options);
  SparseFile image = run.before;
  const std::string wrong = ApplyByHand(planned.plan, image);
  if (!wrong.empty()) AddBroken("A plan knows what is there", wrong, broken);
  if (!(image == run.after)) {
    AddBroken("A repair does what the dry run said, no more", "the images differ", broken);
  }
}

// Clean, or listed.
void LookAtWhatRemains(const RepairRun& run, std::string& broken) {
  const RepairResult& result = run.result;
  const Report after = CheckImage(run.after, ListMost());
  if (!SameTotals(after.totals, result.after.totals)) {
    AddBroken("The report after a repair is of the image as it is",
              absl::StrCat(Words(after.totals), " instead of ", Words(result.after.totals)),
              broken);
  }
  if (!SameTotals(after.totals, result.plan.remaining)) {
    AddBroken("A plan says what will remain",
              absl::StrCat(Words(after.totals), " instead of ", Words(result.plan.remaining)),
              broken);
  }
  if (!result.plan.refused.empty() || run.options.mode == RepairMode::kLeaks) return;
  for (const Finding& finding : after.findings) {
    const Tally tally = InfoOf(finding.code).tally;
    if (tally != Tally::kCorruptions && tally != Tally::kLeaks) continue;
    if (finding.code == FindingCode::kLeakSuspicious) continue;  // held back
    if (IsDeclined(result, finding)) continue;
    AddBroken("What remains was declined, with a reason", Words(finding), broken);
    return;
  }
}

// Where a repair removes what shows that orphans may be worth something it leaves a note in the
// header. If bytes that mean nothing are in its place there is no note, and the next repair does
// not know why the orphans were kept.
bool IsForgetful(const SparseFile& before, const Plan& again) {
  constexpr uint64_t kNoteBytes = 8 + kRepairNoteBytes;
  for (const PlanStep& step : again.steps) {
    for (const PlannedWrite& write : step.writes) {
      if (write.reason.action != RepairAction::kLowerRefcount) return false;
    }
  }
  const Header header = DecodeHeader(before.Bytes(0, kHeaderBytesKnown));
  const uint64_t area = std::min(header.cluster_size(), before.size_bytes());
  // As the header pass does where the length is impossible.
  const bool is_length = header.version == 2 ||
                         (kHeaderBytesV3 <= header.header_length && header.header_length <= area);
  const HeaderExtensionList list = ParseHeaderExtensions(
      before.Bytes(0, area), is_length ? header.header_length : kHeaderBytesV3, area);
  const std::vector<uint8_t> place = before.Bytes(list.end_bytes, kNoteBytes);
  return !list.has_end_marker || list.end_bytes + kNoteBytes > area ||
         std::any_of(place.begin(), place.end(), [](uint8_t byte) { return byte != 0; });
}

std::string WritesOf(const Plan& plan) {
  std::string what;
  for (const PlanStep& step : plan.steps) {
    for (const PlannedWrite& write : step.writes) {
      absl::StrAppend(&what, InfoOf(write.reason.code).name, " at 0x",
                      absl::Hex(write.offset_bytes), "; ");
    }
  }
  if (!plan.closing.writes.empty()) absl::StrAppend(&what, "feature bits; ");
  if (!plan.discards.empty()) absl::StrAppend(&what, "holes");
  return what;
}

bool GivesUpData(const Plan& plan) {
  return std::any_of(plan.steps.begin(), plan.steps.end(), [](const PlanStep& step) {
    return std::any_of(step.writes.begin(), step.writes.end(), [](const PlannedWrite& write) {
      return write.reason.safety != RepairSafety::kLossless ||
             write.reason.action == RepairAction::kCopyOut;
    });
  });
}

void LookAtSecondRepair(const RepairRun& run, std::string& broken) {
  const RepairResult again = PlanRepair(run.after, ListMost(), run.options);
  if (again.plan.empty() || IsForgetful(run.before, again.plan)) return;
  AddBroken("One repair is enough", absl::StrCat("a second would write ", WritesOf(again.plan)),
            broken);
}

void LookAtLaterRepairs(const RepairRun& run, std::string& broken) {
  if (!GivesUpData(run.result.plan)) return LookAtSecondRepair(run, broken);
  constexpr int kMostRepairs = 5;
  RepairRun last = run;
  for (int i = 0; i < kMostRepairs && !last.result.plan.empty(); ++i) {
    last = RunRepair(last.after, last.options);
  }
  if (last.result.plan.empty()) return;
  AddBroken("Repairs come to an end", absl::StrCat("the last wrote ", WritesOf(last.result.plan)),
            broken);
}

void LookAtUndo(const RepairRun& run, std::string& broken) {
  std::string why;
  const SparseFile undone = UndoRun(run, why);
  if (!why.empty()) AddBroken("A repair can be undone", why, broken);
  if (!(undone == run.before)) {
    AddBroken("Undo gives back every byte", "the images differ", broken);
  }
}

}  // namespace

void AddBroken(absl::string_view promise, absl::string_view how, std::string& broken) {
  absl::StrAppend(&broken, promise, ": ", how, "\n");
}

RepairRun RunRepair(const SparseFile& image, const RepairOptions& options) {
  RepairRun run{.options = options, .before = image, .after = image};
  run.result = RepairImage(run.after, ListMost(), options,
                           [&]() -> absl::StatusOr<std::unique_ptr<WritableImageFile>> {
                             return std::make_unique<KeptFile>(run.undo_log);
                           });
  return run;
}

SparseFile UndoRun(const RepairRun& run, std::string& why) {
  SparseFile image = run.after;
  if (run.undo_log.size_bytes() == 0) return image;
  const absl::StatusOr<UndoResult> undone = UndoRepair(image, run.undo_log, UndoOptions{});
  if (!undone.ok()) why = undone.status().ToString();
  return image;
}

std::string BrokenPlainPromises(const RepairRun& run, SecondRepair second) {
  std::string broken;
  LookAtEnd(run, broken);
  LookAtDryRun(run, broken);
  LookAtWhatRemains(run, broken);
  if (second == SecondRepair::kWritesNothing) {
    LookAtSecondRepair(run, broken);
  } else {
    LookAtLaterRepairs(run, broken);
  }
  LookAtUndo(run, broken);
  return broken;
}

}  // namespace qcow2check::testing
