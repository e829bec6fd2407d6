// Repairs that are cut off: killed at any write, in the middle of one, or by a power cut that loses
// any of what was not flushed. Whatever is left is no worse than what was there before, repairs to
// the same end, and can be undone; and the undo can be cut off as well.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checker/check.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/repair.h"
#include "repair/undo.h"
#include "repair/undo_log.h"
#include "tests/damage.h"
#include "tests/dice.h"
#include "tests/guest_view.h"
#include "tests/image_builder.h"
#include "tests/recording_file.h"
#include "tests/repair_corpus.h"

namespace qcow2check::testing {
namespace {

constexpr size_t kImage = 0, kUndo = 1;
// Ways of losing power at one point that are all tried; of more, some.
constexpr uint64_t kAllWays = 16;
constexpr int kSomeWays = 6;

struct CrashCase {
  std::string name;
  Bytes damaged;
  Bytes data_file = {};
  RepairOptions options = {};
};

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

// A repair that was not cut off, and what it is measured by.
class WholeRepair {
 public:
  explicit WholeRepair(const CrashCase& crash_case)
      : options_(crash_case.options),
        damaged_(crash_case.damaged),
        data_file_(crash_case.data_file),
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

  const RecordedDisk& disk() const { return disk_; }
  const RepairResult& result() const { return result_; }
  const Bytes& repaired() const { return image_.bytes(); }

  // What is wrong with what a crash has left; empty if nothing is.
  std::string Wrong(const DiskState& state) const {
    for (const auto wrong : {&WholeRepair::WorseThanBefore, &WholeRepair::OtherEndWithUndoFile,
                             &WholeRepair::WrongUndo}) {
      if (std::string what = (this->*wrong)(state); !what.empty()) return what;
    }
    return "";
  }

  // What is wrong with a repair that starts there without the undo file: its end must be as good.
  std::string WorseEndWithout(const DiskState& state) const {
    MemoryFile image(state[kImage]);
    const RepairResult again = RepairImage(image, {}, options_, nullptr);
    if (!again.status.ok()) return absl::StrCat("repair without: ", again.status.message());
    for (const CodeTotal& row : again.after.code_totals) {
      const uint64_t before = CountOf(result_.after, row.code);
      if (row.count <= before || IsLeftFromBuilding(row.code)) continue;
      return absl::StrCat("a repair without the undo file leaves ", row.count, " ",
                          InfoOf(row.code).name, " instead of ", before);
    }
    if (const auto offset = FindReadOtherwise(ViewOf(image.bytes()), /*before_will_do=*/false)) {
      return absl::StrCat("after a repair without the undo file guest offset ", *offset,
                          " reads otherwise");
    }
    return "";
  }

  // Of an undo that is itself cut off after each of its writes.
  std::string WrongInterruptedUndo(const DiskState& state, Dice& dice) const {
    const MemoryFile undo(state[kUndo]);
    RecordedDisk disk;
    std::string wrong = WrongUndoOf(disk.AddFile(state[kImage]), undo);
    for (size_t count = 0; count <= disk.events() && wrong.empty(); ++count) {
      const PowerCut cut = disk.PowerFails(count);
      for (const DiskState& left : {disk.Killed(count), cut.Way(0), cut.AtRandom(dice)}) {
        if (wrong.empty()) wrong = WrongUndoOf(MemoryFile(left[kImage]), undo);
      }
    }
    return wrong;
  }

 private:
  uint64_t ClusterSize() const {
    return std::max<uint64_t>(result_.before.image.cluster_size, 512);
  }
  GuestView ViewOf(const Bytes& image) const {
    return ReadDisk({image, data_file_}, result_.before.image.virtual_size_bytes);
  }

  // The first offset where the guest reads neither what it read before the repair nor what it reads
  // after it.
  std::optional<uint64_t> FindReadOtherwise(const GuestView& view, bool before_will_do) const {
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
  bool IsGivenUp(uint64_t guest_offset) const {
    const std::vector<GuestRange>& lost = result_.plan.lost_guest_ranges;
    return std::any_of(lost.begin(), lost.end(), [&](const GuestRange& range) {
      return range.offset_bytes <= guest_offset && guest_offset < range.end_bytes();
    });
  }

  // Each unit of the guest's disk reads as before or as after the whole repair, and no cluster
  // lacks references that had enough.
  std::string WorseThanBefore(const DiskState& state) const {
    if (const auto offset = FindReadOtherwise(ViewOf(state[kImage]), /*before_will_do=*/true)) {
      return absl::StrCat("guest offset ", *offset, " reads otherwise");
    }
    // What a refcount table that leads anywhere claims of the bytes that the repair adds is no use.
    uint64_t clusters = damaged_.size() / ClusterSize();
    // Where even the header has no refcount, none of them protects anything.
    if (unprotected_.contains(0)) clusters = 0;
    for (const auto& [cluster, refcount] : UnprotectedClusters(state[kImage])) {
      if (cluster >= clusters) continue;
      const auto before = unprotected_.find(cluster);
      if (before != unprotected_.end() && before->second <= refcount) continue;
      return absl::StrCat("the refcount of cluster ", cluster, " is too low");
    }
    return "";
  }

  // With its undo file there, a repair ends in the very same bytes.
  std::string OtherEndWithUndoFile(const DiskState& state) const {
    MemoryFile image(state[kImage]), undo(state[kUndo]);
    const absl::StatusOr<Leftover> leftover = RollBack(image, undo);
    if (!leftover.ok()) return absl::StrCat("roll back: ", leftover.status().message());
    if (ReadUndoLog(undo)->state == UndoLogState::kFinished) {
      return image.bytes() == repaired() ? "" : "the finished mark came too early";
    }
    const RepairResult again = RepairImage(image, {}, options_, nullptr);
    if (!again.status.ok()) return absl::StrCat("repair again: ", again.status.message());
    return image.bytes() == repaired() ? "" : "a repair with the undo file ends in other bytes";
  }

  std::string WrongUndo(const DiskState& state) const {
    return WrongUndoOf(MemoryFile(state[kImage]), MemoryFile(state[kUndo]));
  }

  template <typename File>
  std::string WrongUndoOf(File&& image, const ImageFile& undo) const {
    const absl::StatusOr<UndoResult> undone = UndoRepair(image, undo, {});
    if (!undone.ok()) return absl::StrCat("undo: ", undone.status().message());
    return image.bytes() == damaged_ ? "" : "undo does not give back the damaged image";
  }

  RepairOptions options_;
  Bytes damaged_;
  Bytes data_file_;
  RecordedDisk disk_;
  RecordingFile& image_;
  RecordingFile& undo_;
  RepairResult result_;
  GuestView damaged_view_;
  GuestView repaired_view_;
  std::map<uint64_t, uint64_t> unprotected_;
  // Guest offsets that read as metadata, which the repair has to change.
  std::set<uint64_t> on_metadata_;
};

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

// Long repairs repeat themselves: of many writes in a row only some are tried, of flushes all.
std::vector<size_t> PointsOf(const RecordedDisk& disk) {
  constexpr size_t kAllBelow = 50;
  const size_t stride = disk.events() / kAllBelow + 1;
  std::vector<size_t> points;
  for (size_t count = 0; count <= disk.events(); ++count) {
    if (count % stride == 0 || disk.IsAtFlush(count)) points.push_back(count);
  }
  return points;
}

enum class UndoFileIs { kThere, kGone };

// Repairs, and looks at what a crash leaves.
void ExpectNothingIsLost(const CrashCase& crash_case, UndoFileIs undo_file) {
  SCOPED_TRACE(crash_case.name);
  const WholeRepair repair(crash_case);
  ASSERT_TRUE(repair.result().status.ok()) << repair.result().status;
  std::set<DiskState> seen;
  for (const size_t count : PointsOf(repair.disk())) {
    Dice dice(count);
    for (DiskState& state : StatesAt(repair.disk(), count, dice)) {
      if (undo_file == UndoFileIs::kGone) state[kUndo].clear();
      if (!seen.insert(state).second) continue;
      std::string wrong =
          undo_file == UndoFileIs::kGone ? repair.WorseEndWithout(state) : repair.Wrong(state);
      if (wrong.empty() && undo_file == UndoFileIs::kThere && dice.Percent(10)) {
        wrong = repair.WrongInterruptedUndo(state, dice);
      }
      ASSERT_EQ(wrong, "") << "cut off after " << count << " of " << repair.disk().events();
    }
  }
}

struct Layout {
  std::string name;
  ImageOptions options;
};
void PrintTo(const Layout& layout, std::ostream* out) { *out << layout.name; }

std::vector<Layout> Layouts() {
  return {
      {"small",
       {.cluster_bits = 9,
        .virtual_size = 128 << 10,
        .steps = {WriteClusters{.count = 20, .stride = 5}}}},
      {"snapshot",
       {.cluster_bits = 10,
        .virtual_size = 256 << 10,
        .steps = {WriteClusters{.count = 6, .stride = 7}, TakeSnapshot{},
                  WriteCompressed{.first = 1, .count = 3, .random_bytes = 300},
                  WriteClusters{.first = 7, .count = 2, .stride = 7}}}},
      {"bits1",
       {.cluster_bits = 9,
        .refcount_order = 0,
        .virtual_size = 128 << 10,
        .steps = {WriteClusters{.count = 20, .stride = 5}}}},
      {"backing",
       {.version = 2,
        .cluster_bits = 10,
        .virtual_size = 512 << 10,
        .backing = BackingOptions{},
        .steps = {WriteClusters{.count = 10, .stride = 3}}}},
      {"extended",
       {.cluster_bits = 14,
        .virtual_size = 64 << 20,
        .extended_l2 = true,
        .steps = {WriteClusters{.count = 4, .stride = 9}}}},
  };
}

class FieldCrashTest : public ::testing::TestWithParam<Layout> {
 protected:
  static void TryAll(UndoFileIs undo_file) {
    for (const FieldDamage& damage : AllFieldDamages()) {
      // Nothing is misaligned where clusters are sectors.
      if (damage.name == "entry-misaligned" && GetParam().options.cluster_bits == 9) continue;
      BuiltImage image = BuildImage(GetParam().options);
      damage.apply(image);
      ExpectNothingIsLost({.name = std::string(damage.name), .damaged = image.bytes}, undo_file);
    }
  }
};

TEST_P(FieldCrashTest, NothingIsLostWhereverARepairIsCutOff) { TryAll(UndoFileIs::kThere); }
TEST_P(FieldCrashTest, ARepairGoesOnWithoutTheUndoFile) { TryAll(UndoFileIs::kGone); }

INSTANTIATE_TEST_SUITE_P(Layouts, FieldCrashTest, ::testing::ValuesIn(Layouts()),
                         [](const auto& test) { return test.param.name; });

// Images and damage of all kinds, some for each parameter.
class RandomCrashTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  static void TryAll(UndoFileIs undo_file) {
    constexpr uint64_t kSeeds = 40;
    for (uint64_t seed = GetParam() * kSeeds; seed < (GetParam() + 1) * kSeeds; ++seed) {
      Dice dice(seed);
      const CorpusImage image = MakeCorpusImage(seed);
      CrashCase crash_case{.name = absl::StrCat("seed ", seed),
                           .damaged = DamageImage(image, dice).bytes,
                           .data_file = image.data_file};
      // Large images take long, and say no more than small ones.
      constexpr uint64_t kEnoughBytes = 256 << 10;
      if (crash_case.damaged.size() > kEnoughBytes) continue;
      crash_case.options.free_orphans = seed % 5 == 3;
      crash_case.options.discard = seed % 5 >= 3;
      ExpectNothingIsLost(crash_case, undo_file);
    }
  }
};

TEST_P(RandomCrashTest, NothingIsLostWhereverARepairIsCutOff) { TryAll(UndoFileIs::kThere); }
TEST_P(RandomCrashTest, ARepairGoesOnWithoutTheUndoFile) { TryAll(UndoFileIs::kGone); }

INSTANTIATE_TEST_SUITE_P(Seeds, RandomCrashTest, ::testing::Range<uint64_t>(0, 5));

}  // namespace
}  // namespace qcow2check::testing
