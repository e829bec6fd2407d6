#include "tests/cut_off_repair.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "checker/check.h"
#include "common/memory_file.h"
#include "repair/undo.h"
#include "repair/undo_log.h"

namespace qcow2check::testing {
namespace {

// Ways of losing power at one point that are all tried; of more, some.
constexpr uint64_t kAllWays = 16;
constexpr int kSomeWays = 6;

// The owner of an open file must outlive what it lends.
OpenUndoFile Lend(WritableImageFile& file) {
  return [&file]() -> absl::StatusOr<std::unique_ptr<WritableImageFile>> {
    return std::make_unique<FailingFile>(file);
  };
}

// Clusters with a refcount below the number of their references, and that refcount.
std::map<uint64_t, uint64_t> UnprotectedClusters(const Bytes& image) {
  const Report report = CheckImage(MemoryFile(image), {.max_findings = 1 << 20});
  std::map<uint64_t, uint64_t> clusters;
  for (const Finding& finding : report.findings) {
    if (finding.code != FindingCode::kRefcountTooLow &&
        finding.code != FindingCode::kRefcountZeroInUse) {
      continue;
    }
    for (uint64_t i = 0; i < finding.clusters; ++i) {
      clusters[finding.host_offset->bytes / report.image.cluster_size + i] = *finding.stored;
    }
  }
  return clusters;
}

uint64_t CountOf(const Report& report, FindingCode code) {
  for (const CodeTotal& row : report.code_totals) {
    if (row.code == code) return row.count;
  }
  return 0;
}

// What the first repair had begun to build, a second one without the undo file keeps: nothing says
// that it is not the only copy of something. It may even look like what was lost.
bool IsLeftFromBuilding(FindingCode code) {
  const FindingCodeInfo& info = InfoOf(code);
  return info.tally == Tally::kNothing || info.tally == Tally::kLeaks ||
         code == FindingCode::kOrphanL2Table || code == FindingCode::kL1Lost ||
         code == FindingCode::kL2TableLost || code == FindingCode::kL2TableTorn;
}

}  // namespace

WholeRepair::WholeRepair(const CrashCase& crash_case)
    : options_(crash_case.options),
      damaged_(crash_case.damaged),
      data_file_(crash_case.data_file),
      guest_end_bytes_(crash_case.guest_end_bytes),
      image_(disk_.AddFile(crash_case.damaged)),
      undo_(disk_.AddFile({})),
      result_(RepairImage(image_, {}, options_, Lend(undo_))),
      damaged_view_(ViewOf(damaged_)),
      repaired_view_(ViewOf(image_.bytes())),
      unprotected_(UnprotectedClusters(damaged_)) {
  for (const Finding& finding : result_.before.findings) {
    if (finding.code != FindingCode::kDataOnMetadata) continue;
    for (const Owner& owner : finding.owners) {
      if (owner.guest_offset) on_metadata_.insert(owner.guest_offset->bytes);
    }
  }
}

std::string WholeRepair::Wrong(const DiskState& state) const {
  for (const auto wrong : {&WholeRepair::WorseThanBefore, &WholeRepair::OtherEndWithUndoFile,
                           &WholeRepair::WrongUndo}) {
    if (std::string what = (this->*wrong)(state); !what.empty()) return what;
  }
  return "";
}

std::string WholeRepair::WorseEndWithout(const DiskState& state) const {
  MemoryFile image(state[kCrashImage]);
  const RepairResult again = RepairImage(image, {}, options_, nullptr);
  if (!again.status.ok()) return absl::StrCat("repair without: ", again.status.message());
  for (const CodeTotal& row : again.after.code_totals) {
    const uint64_t before = CountOf(result_.after, row.code);
    if (row.count <= before || IsLeftFromBuilding(row.code)) continue;
    // It stays set as long as there is anything else, which is looked at for itself.
    if (row.code == FindingCode::kCorruptBit && row.count < again.after.totals.corruptions) {
      continue;
    }
    return absl::StrCat("a repair without the undo file leaves ", row.count, " ",
                        InfoOf(row.code).name, " instead of ", before);
  }
  if (const auto offset = FindReadOtherwise(ViewOf(image.bytes()), /*before_will_do=*/false)) {
    return absl::StrCat("after a repair without the undo file guest offset ", *offset,
                        " reads otherwise");
  }
  return "";
}

std::string WholeRepair::WrongInterruptedUndo(const DiskState& state, Dice& dice) const {
  RecordedDisk disk;
  std::string wrong = WrongUndoOf(disk.AddFile(state[kCrashImage]), state[kCrashUndo]);
  for (size_t count = 0; count <= disk.events() && wrong.empty(); ++count) {
    const PowerCut cut = disk.PowerFails(count);
    for (const DiskState& left : {disk.Killed(count), cut.Way(0), cut.AtRandom(dice)}) {
      if (!wrong.empty()) return wrong;
      MemoryFile image(left[kCrashImage]);
      wrong = WrongUndoOf(image, state[kCrashUndo]);
    }
  }
  return wrong;
}

uint64_t WholeRepair::ClusterSize() const {
  return std::max<uint64_t>(result_.before.image.cluster_size, 512);
}

GuestView WholeRepair::ViewOf(const Bytes& image) const {
  return ReadDisk({image, data_file_},
                  std::min(result_.before.image.virtual_size_bytes, guest_end_bytes_));
}

// The first offset where the guest reads neither what it read before the repair nor what it reads
// after it.
std::optional<uint64_t> WholeRepair::FindReadOtherwise(const GuestView& view,
                                                       bool before_will_do) const {
  std::set<uint64_t> offsets;
  for (const GuestView* one : {&view, &damaged_view_, &repaired_view_}) {
    for (const auto& [offset, unit] : one->units) offsets.insert(offset);
  }
  for (const uint64_t offset : offsets) {
    const GuestUnit unit = view.At(offset);
    if (unit == repaired_view_.At(offset)) continue;
    if (before_will_do ? unit == damaged_view_.At(offset) : IsGivenUp(offset)) continue;
    if (!on_metadata_.contains(offset)) return offset;
  }
  return std::nullopt;
}

// A second repair may find out more: the first has made fewer things uncertain by then.
bool WholeRepair::IsGivenUp(uint64_t guest_offset) const {
  const std::vector<GuestRange>& lost = result_.plan.lost_guest_ranges;
  return std::any_of(lost.begin(), lost.end(), [&](const GuestRange& range) {
    return range.offset_bytes <= guest_offset && guest_offset < range.end_bytes();
  });
}

std::string WholeRepair::WorseThanBefore(const DiskState& state) const {
  if (const auto offset = FindReadOtherwise(ViewOf(state[kCrashImage]), /*before_will_do=*/true)) {
    return absl::StrCat("guest offset ", *offset, " reads otherwise");
  }
  // What a refcount table that leads anywhere claims of the bytes that the repair adds is no use.
  uint64_t clusters = damaged_.size() / ClusterSize();
  // Where even the header has no refcount, none of them protects anything.
  if (unprotected_.contains(0)) clusters = 0;
  for (const auto& [cluster, refcount] : UnprotectedClusters(state[kCrashImage])) {
    if (cluster >= clusters) continue;
    const auto before = unprotected_.find(cluster);
    if (before != unprotected_.end() && before->second <= refcount) continue;
    return absl::StrCat("the refcount of cluster ", cluster, " is too low");
  }
  return "";
}

std::string WholeRepair::OtherEndWithUndoFile(const DiskState& state) const {
  MemoryFile image(state[kCrashImage]), undo(state[kCrashUndo]);
  const absl::StatusOr<Leftover> leftover = RollBack(image, undo);
  if (!leftover.ok()) return absl::StrCat("roll back: ", leftover.status().message());
  if (ReadUndoLog(undo)->state == UndoLogState::kFinished) {
    return image.bytes() == repaired() ? "" : "the finished mark came too early";
  }
  const RepairResult again = RepairImage(image, {}, options_, nullptr);
  if (!again.status.ok()) return absl::StrCat("repair again: ", again.status.message());
  return image.bytes() == repaired() ? "" : "a repair with the undo file ends in other bytes";
}

std::string WholeRepair::WrongUndo(const DiskState& state) const {
  MemoryFile image(state[kCrashImage]);
  return WrongUndoOf(image, state[kCrashUndo]);
}

std::string WholeRepair::WrongUndoOf(WritableImageFile& image, const Bytes& undo) const {
  const absl::StatusOr<UndoResult> undone = UndoRepair(image, MemoryFile(undo), {});
  if (!undone.ok()) return absl::StrCat("undo: ", undone.status().message());
  Bytes bytes(image.size_bytes());
  const absl::Status status = image.ReadAt(HostOffset{0}, absl::MakeSpan(bytes));
  if (!status.ok()) return std::string(status.message());
  return bytes == damaged_ ? "" : "undo does not give back the damaged image";
}

std::vector<DiskState> StatesAt(const RecordedDisk& disk, size_t count, Dice& dice) {
  std::vector<DiskState> states = disk.KilledInside(count);
  states.push_back(disk.Killed(count));
  const PowerCut cut = disk.PowerFails(count);
  if (cut.ways() <= kAllWays) {
    for (uint64_t way = 0; way < cut.ways(); ++way) states.push_back(cut.Way(way));
  } else {
    states.push_back(cut.Way(0));
    for (int i = 0; i < kSomeWays; ++i) states.push_back(cut.AtRandom(dice));
  }
  return states;
}

}  // namespace qcow2check::testing
