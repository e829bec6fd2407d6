// The properties of a repair: see fuzz/properties.h.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "cli/json_report.h"
#include "cli/repair_outcome.h"
#include "cli/repair_text.h"
#include "fuzz/outputs.h"
#include "fuzz/properties.h"
#include "tests/cut_off_repair.h"
#include "tests/dice.h"
#include "tests/guest_view.h"
#include "tests/plain_promises.h"

namespace qcow2check::testing {
namespace {

// What is wrong with counts and flags says nothing against what an entry leads to.
bool IsAboutCountsOnly(const Finding& finding) {
  switch (finding.code) {
    case FindingCode::kDirtyBit:
    case FindingCode::kCorruptBit:
    case FindingCode::kRefcountTooLow:
    case FindingCode::kRefcountZeroInUse:
    case FindingCode::kRefcountTooHigh:
    case FindingCode::kRefcountLazy:
    case FindingCode::kRefcountPastEnd:
    case FindingCode::kLeakedCluster:
    case FindingCode::kCopiedWrong:
    case FindingCode::kRefcountTableInvalid:
    case FindingCode::kRefcountBlockMisaligned:
    case FindingCode::kRefcountBlockPastEnd:
    case FindingCode::kRefcountBlockGarbage:
      return true;
    default:
      return InfoOf(finding.code).severity == Severity::kInfo;
  }
}

// Where a check found something wrong. What it found nothing wrong with a repair may not change.
class Doubts {
 public:
  explicit Doubts(const Report& report) : cluster_size_(report.image.cluster_size) {
    everything_ = report.image.version == 0 || report.verdict == Verdict::kIncomplete;
    for (const CodeTotal& row : report.code_totals) {
      everything_ |= row.findings > kMostListed;
    }
    for (const Finding& finding : report.findings) {
      if (!IsAboutCountsOnly(finding)) Add(finding);
    }
  }

  bool everything() const { return everything_; }

  // About the cluster at `offset_bytes`, and that behind it for what is compressed.
  bool Concern(uint64_t offset_bytes) const {
    const uint64_t begin = offset_bytes / cluster_size_ * cluster_size_;
    const uint64_t end = begin + 3 * cluster_size_;
    return std::any_of(places_.begin(), places_.end(), [&](const Extent& place) {
      return place.begin_bytes < end && begin < place.end_bytes;
    });
  }

 private:
  void Add(const Finding& finding) {
    switch (finding.structure) {
      case Structure::kL2Table:
      case Structure::kRefcountBlock:
      case Structure::kRefcountTable:
      case Structure::kBitmapDirectory:
      case Structure::kBitmapTable:
      case Structure::kBitmapData:
      case Structure::kDataCluster:
      case Structure::kCompressedCluster:
        break;
      default:
        everything_ = true;
    }
    if (!finding.host_offset.has_value()) everything_ = true;
    AddPlace(finding.host_offset.value_or(HostOffset{0}).bytes,
             std::max<uint64_t>(finding.length_bytes, 1));
    if (finding.target.has_value()) {
      AddPlace(finding.target->bytes, std::max<uint64_t>(finding.clusters, 1) * cluster_size_);
    }
    for (const Owner& owner : finding.owners) {
      AddPlace(owner.host_offset.bytes, cluster_size_);
      if (owner.entry_offset.has_value()) AddPlace(owner.entry_offset->bytes, 1);
    }
  }
  void AddPlace(uint64_t begin, uint64_t length) {
    places_.push_back({begin, begin > UINT64_MAX - length ? UINT64_MAX : begin + length});
  }

  uint64_t cluster_size_;
  bool everything_ = false;
  std::vector<Extent> places_;
};

// A line if something reads otherwise that there was no doubt about.
void CompareUndoubted(absl::string_view disk, const GuestView& before, const GuestView& after,
                      const Doubts& doubts, std::string& broken) {
  for (const auto& [offset, unit] : before.units) {
    if (unit.read != GuestRead::kData || after.At(offset) == unit) continue;
    if (doubts.Concern(*unit.host_offset) || doubts.Concern(unit.table_offset)) continue;
    AddBroken("What was sound reads as before", absl::StrCat(disk, ", guest 0x", absl::Hex(offset)),
              broken);
    return;
  }
}

RepairOptions OptionsOf(Dice& dice) {
  RepairOptions options;
  if (dice.Percent(15)) options.mode = RepairMode::kLeaks;
  options.free_orphans = dice.Percent(10);
  options.discard = dice.Percent(20);
  options.fixed_size = dice.Percent(10);
  return options;
}

// Of the disk that is looked at: clusters are many where it is large and each table leads
// everywhere.
constexpr uint64_t kMostGuestBytes = 64 * kMaxWholeBytes;

class RepairTrial {
 public:
  explicit RepairTrial(const SparseFile& image)
      : dice_(SeedOf(image)), run_(RunRepair(image, OptionsOf(dice_))) {}

  std::string Run() && {
    broken_ = BrokenPlainPromises(run_, SecondRepair::kMayGoOnAfterLosses);
    if (run_.result.before.findings.size() < 100 || dice_.Percent(5)) LookAtOutputs();
    if (run_.options.mode == RepairMode::kLeaks) LookAtLeaksMode();
    if (IsWhole(run_.before) && IsWhole(run_.after)) {
      LookAtGuest();
      LookAtCrash();
    }
    if (!broken_.empty()) absl::StrAppend(&broken_, "options: ", Words(run_.options), "\n");
    return std::move(broken_);
  }

 private:
  static bool IsWhole(const SparseFile& file) { return file.size_bytes() <= kMaxWholeBytes; }
  static std::string Words(const RepairOptions& options) {
    return absl::StrCat(NameOf(options.mode), options.free_orphans ? ", free orphans" : "",
                        options.discard ? ", discard" : "",
                        options.fixed_size ? ", fixed size" : "");
  }

  void LookAtOutputs() {
    RepairOutcome outcome;
    outcome.options = run_.options;
    outcome.result = run_.result;
    outcome.undo_file = "an undo file";
    CheckJson(JsonReport("an image", run_.result.after, &outcome, {}, "", /*one_line=*/false),
              broken_);
    CheckText(RepairText(outcome, {.name = "an image", .path = "a path"}), broken_);
  }

  void LookAtLeaksMode() {
    const Totals& found = run_.result.before.totals;
    if (found.corruptions + found.check_errors != 0 && !(run_.after == run_.before)) {
      AddBroken("leaks writes nothing while there is corruption", "it did", broken_);
    }
  }

  void LookAtGuest() {
    constexpr uint64_t kMostEntries = 1 << 16;
    const ImageSummary& summary = run_.result.before.image;
    if (summary.cluster_size == 0 || summary.cluster_size > kMostEntries) return;
    const Doubts doubts(run_.result.before);
    const std::vector<uint8_t> before = run_.before.Bytes();
    const std::vector<uint8_t> after = run_.after.Bytes();
    const std::vector<uint8_t> none;
    const bool leaks = run_.options.mode == RepairMode::kLeaks;
    if (doubts.everything() && !leaks) return;
    const uint64_t end = std::min<uint64_t>(summary.virtual_size_bytes, kMostGuestBytes);
    const GuestView disk = ReadDisk({before, none}, end);
    const GuestView repaired = ReadDisk({after, none}, end);
    if (leaks && disk.units != repaired.units) {
      AddBroken("leaks changes nothing for the guest", "the disk reads otherwise", broken_);
    }
    if (doubts.everything()) return;
    CompareUndoubted("the disk", disk, repaired, doubts, broken_);
    const std::vector<GuestView> snapshots = ReadSnapshots({before, none}, end);
    const std::vector<GuestView> others = ReadSnapshots({after, none}, end);
    if (snapshots.size() != others.size()) {
      AddBroken("What was sound reads as before", "the snapshots are not as many", broken_);
      return;
    }
    for (size_t i = 0; i < snapshots.size(); ++i) {
      CompareUndoubted(absl::StrCat("snapshot ", i), snapshots[i], others[i], doubts, broken_);
    }
  }

  // At one random point: killed, and after a power cut.
  void LookAtCrash() {
    if (run_.result.plan.empty() || !run_.result.status.ok()) return;
    const WholeRepair whole({.name = "",
                             .damaged = run_.before.Bytes(),
                             .options = run_.options,
                             .guest_end_bytes = kMostGuestBytes});
    const size_t count = dice_.Below(whole.disk().events() + 1);
    for (const DiskState& state :
         {whole.disk().Killed(count), whole.disk().PowerFails(count).AtRandom(dice_)}) {
      for (const auto look : {&WholeRepair::OtherEndWithUndoFile, &WholeRepair::WrongUndo}) {
        const std::string wrong = (whole.*look)(state);
        if (wrong.empty()) continue;
        AddBroken("A repair can be cut off anywhere",
                  absl::StrCat(wrong, ", after ", count, " of ", whole.disk().events()), broken_);
      }
    }
  }

  Dice dice_;
  const RepairRun run_;
  std::string broken_;
};

}  // namespace

std::string BrokenByRepair(const SparseFile& image) { return RepairTrial(image).Run(); }

}  // namespace qcow2check::testing
