// Disks that fail below the check, the repair and the undo: each read and each write in turn, once
// or for good; bad sectors; a file that another program makes shorter; storage that takes its time.
// A check never calls sound what it has not seen, a repair loses nothing by what it could not see,
// and what it has begun can be taken back when the disk works again.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "checker/check.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/repair.h"
#include "repair/undo.h"
#include "tests/cut_off_repair.h"
#include "tests/damage.h"
#include "tests/dice.h"
#include "tests/fault_file.h"
#include "tests/image_builder.h"
#include "tests/recording_file.h"
#include "tests/reference_compare.h"
#include "tests/repair_corpus.h"

namespace qcow2check::testing {
namespace {

using ::testing::AnyOf;
using ::testing::Eq;

// Where each read, or each cluster, is tried in turn: about so many of them.
constexpr uint64_t kTriesEach = 12;
constexpr uint64_t kSeeds = 12;
constexpr uint64_t kForGood = 1 << 30;

uint64_t StrideOf(uint64_t count) { return count / kTriesEach + 1; }

// Images of a few kinds with every accident of the field; and of every kind, damaged at random.
std::vector<CrashCase> DamagedImages() {
  const ImageOptions small = {.cluster_bits = 9,
                              .virtual_size = 128 << 10,
                              .steps = {WriteClusters{.count = 20, .stride = 5}}};
  const ImageOptions snapshot = {.cluster_bits = 12,
                                 .virtual_size = 4 << 20,
                                 .steps = {WriteClusters{.count = 6, .stride = 7}, TakeSnapshot{},
                                           WriteCompressed{.first = 1, .count = 3},
                                           WriteClusters{.first = 7, .count = 2, .stride = 7}},
                                 .bitmaps = {{.dirty = {{.length = 1 << 20}}}}};
  std::vector<CrashCase> cases;
  for (const ImageOptions& options : {small, snapshot}) {
    for (const FieldDamage& damage : AllFieldDamages()) {
      // Nothing is misaligned where clusters are sectors.
      if (damage.name == "entry-misaligned" && options.cluster_bits == 9) continue;
      BuiltImage image = BuildImage(options);
      damage.apply(image);
      cases.push_back(
          {.name = absl::StrCat(damage.name, ", ", image.cluster_size()), .damaged = image.bytes});
    }
  }
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const CorpusImage image = MakeCorpusImage(seed);
    Dice dice(seed);
    const DamagedImage damaged = DamageImage(image, dice);
    cases.push_back({.name = absl::StrCat(image.name, ", ", damaged.damage),
                     .damaged = damaged.bytes,
                     .data_file = image.data_file});
  }
  return cases;
}

// --- The check ---

Report CheckOneByOne(const ImageFile& file) {
  return CheckImage(file, {.max_findings = 1 << 20, .threads = 1, .part_bytes = 1});
}

uint64_t LeakedClusters(const Report& report) {
  for (const CodeTotal& total : report.code_totals) {
    if (total.code == FindingCode::kLeakedCluster) return total.clusters;
  }
  return 0;
}

// Says what is wrong with the report of a check that could not read all.
std::string Dishonest(const Report& report, const Report& whole) {
  if (Digest(report, /*findings=*/true) == Digest(whole, true)) return "";
  if (LeakedClusters(report) > LeakedClusters(whole)) return "it calls waste what may be in use";
  // What could not be looked at may be held back without a word about why.
  if (report.coverage.complete() && (report.totals.corruptions != whole.totals.corruptions ||
                                     report.held_back.clusters < whole.held_back.clusters)) {
    return "it does not say that something was not examined";
  }
  if (report.coverage.complete()) return "";
  // An image without a header, or what may be none.
  if (report.image.version == 0 && ExitCodeOf(report) != 0) return "";
  if (ExitCodeOf(report) != 1) return absl::StrCat("the exit code is ", ExitCodeOf(report));
  if (report.totals.check_errors == 0) return "no check error is counted";
  return "";
}

TEST(ReadFaultsTest, ACheckSaysWhatItHasNotSeen) {
  uint64_t mattered = 0;
  for (const CrashCase& image : DamagedImages()) {
    SCOPED_TRACE(image.name);
    const FaultFile good(image.damaged);
    const Report whole = CheckOneByOne(good);
    const uint64_t reads = good.reads();
    for (uint64_t read = 0; read < reads; read += StrideOf(reads)) {
      for (const uint64_t count : {uint64_t{1}, uint64_t{2}, kForGood}) {
        FaultFile file(image.damaged);
        file.FailReads(read, count);
        const Report report = CheckOneByOne(file);
        ASSERT_EQ(Dishonest(report, whole), "") << "read " << read << " and " << count;
        if (!report.coverage.complete()) ++mattered;
      }
    }
  }
  EXPECT_GT(mattered, 500u);
}

// --- The repair ---

struct FaultyRun {
  RepairResult result;
  DiskState left;
};

FaultyRun RunRepair(FaultFile& image, const CrashCase& image_case) {
  FaultyRun run;
  MemoryFile undo({});
  run.result = RepairImage(image, {.threads = 1}, image_case.options,
                           [&undo]() -> absl::StatusOr<std::unique_ptr<WritableImageFile>> {
                             return std::make_unique<FailingFile>(undo);
                           });
  run.left = {image.bytes(), undo.bytes()};
  return run;
}

// What is wrong with what the repair of a bad disk has left, looked at when the disk is good again.
std::string Wrong(const FaultyRun& run, const WholeRepair& whole) {
  if (!run.result.changed && run.left[kCrashImage] != whole.damaged()) return "it was changed";
  if (!run.result.changed) return "";
  if (std::string wrong = whole.WorseThanBefore(run.left); !wrong.empty()) return wrong;
  if (std::string wrong = whole.WrongUndo(run.left); !wrong.empty()) return wrong;
  return whole.WorseEndWithout(run.left);
}

TEST(ReadFaultsTest, ARepairLosesNothingByAReadThatFails) {
  uint64_t changed = 0, stopped = 0;
  for (const CrashCase& image : DamagedImages()) {
    SCOPED_TRACE(image.name);
    const WholeRepair whole(image);
    FaultFile good(image.damaged);
    RunRepair(good, image);
    for (uint64_t read = 0; read < good.reads(); read += StrideOf(good.reads())) {
      for (const uint64_t count : {uint64_t{1}, uint64_t{2}, kForGood}) {
        FaultFile file(image.damaged);
        file.FailReads(read, count);
        const FaultyRun run = RunRepair(file, image);
        ASSERT_EQ(Wrong(run, whole), "") << "read " << read << " and " << count;
        if (run.result.changed) ++changed;
        if (!run.result.status.ok()) ++stopped;
      }
    }
  }
  EXPECT_GT(changed, 100u);
  EXPECT_GT(stopped, 100u);
}

TEST(ReadFaultsTest, ARepairLosesNothingBehindABadSector) {
  uint64_t changed = 0;
  for (const CrashCase& image : DamagedImages()) {
    SCOPED_TRACE(image.name);
    const WholeRepair whole(image);
    const uint64_t sectors = image.damaged.size() / 512;
    for (uint64_t sector = 0; sector < sectors; sector += StrideOf(sectors)) {
      FaultFile file(image.damaged);
      file.Break(sector * 512, 512);
      const FaultyRun run = RunRepair(file, image);
      ASSERT_EQ(Wrong(run, whole), "") << "sector " << sector;
      if (run.result.changed) ++changed;
    }
  }
  EXPECT_GT(changed, 20u);
}

// --- Writes ---

// Full, or broken, from one write, resize or flush on; a write is done by half.
TEST(WriteFaultsTest, ARepairStopsWhereItCanBeTakenBack) {
  for (const CrashCase& image_case : DamagedImages()) {
    SCOPED_TRACE(image_case.name);
    const WholeRepair whole(image_case);
    const uint64_t operations = whole.disk().events();
    for (uint64_t operation = 0; operation < operations; operation += StrideOf(operations)) {
      for (const size_t broken : {kCrashImage, kCrashUndo}) {
        MemoryFile image(image_case.damaged), undo({});
        FailingFile image_disk(image), undo_disk(undo);
        FailingFile& disk = broken == kCrashImage ? image_disk : undo_disk;
        disk.FailAt(operation, absl::ResourceExhaustedError("no space left"));
        const RepairResult result =
            RepairImage(image_disk, {.threads = 1}, image_case.options,
                        [&]() -> absl::StatusOr<std::unique_ptr<WritableImageFile>> {
                          return std::make_unique<FailingFile>(undo_disk);
                        });
        if (disk.operations() <= operation) continue;
        EXPECT_TRUE(absl::IsResourceExhausted(result.status)) << result.status;
        const DiskState left = {image.bytes(), undo.bytes()};
        ASSERT_EQ(whole.Wrong(left), "") << "operation " << operation << " on file " << broken;
        if (!result.changed) {
          ASSERT_TRUE(left[kCrashImage] == image_case.damaged);
        }
      }
    }
  }
}

// --- Another program takes the end of the file away ---

TEST(FileLengthTest, NothingIsRepairedInAFileThatBecameShorter) {
  for (const CrashCase& image : DamagedImages()) {
    SCOPED_TRACE(image.name);
    FaultFile good(image.damaged);
    PlanRepair(good, {.threads = 1}, image.options);
    for (uint64_t read = 0; read < good.reads(); read += StrideOf(good.reads())) {
      FaultFile file(image.damaged);
      file.ResizeAtRead(read, image.damaged.size() / 3);
      const FaultyRun run = RunRepair(file, image);
      ASSERT_FALSE(run.result.changed) << read;
      EXPECT_TRUE(run.left[kCrashImage] == image.damaged) << read;
      EXPECT_TRUE(run.left[kCrashUndo].empty()) << read;
      EXPECT_TRUE(run.result.plan.empty() || absl::IsUnavailable(run.result.status)) << read;
      EXPECT_FALSE(file.availability().ok());
    }
  }
}

// --- The undo ---

// A repair that was killed at its last write but one.
DiskState Interrupted() {
  BuiltImage image = BuildImage({.cluster_bits = 9,
                                 .virtual_size = 128 << 10,
                                 .steps = {WriteClusters{.count = 20, .stride = 5}}});
  RefcountBlockZeroed(image);
  const WholeRepair whole({.name = "", .damaged = image.bytes});
  size_t count = whole.disk().events() - 1;
  while (whole.disk().Killed(count)[kCrashUndo] == whole.disk().Killed(count + 1)[kCrashUndo]) {
    --count;
  }
  return whole.disk().Killed(count);
}

// Reads of the image fail, or of the undo file.
enum class Fails { kImage, kUndoFile };
class UndoFaultsTest : public ::testing::TestWithParam<Fails> {
 protected:
  UndoFaultsTest() : left_(Interrupted()) {
    MemoryFile image(left_[kCrashImage]);
    EXPECT_TRUE(UndoRepair(image, MemoryFile(left_[kCrashUndo]), {}).ok());
    damaged_ = image.bytes();
  }
  void FailRead(uint64_t read) {
    image_.emplace(left_[kCrashImage]);
    undo_.emplace(left_[kCrashUndo]);
    faulty().FailReads(read);
  }
  FaultFile& faulty() { return GetParam() == Fails::kImage ? *image_ : *undo_; }

  const DiskState left_;
  Bytes damaged_;
  std::optional<FaultFile> image_, undo_;
};

TEST_P(UndoFaultsTest, AnUndoIsDoneOrCanBeDone) {
  for (uint64_t read = 0;; ++read) {
    FailRead(read);
    const absl::Status status = UndoRepair(*image_, *undo_, {}).status();
    if (faulty().reads() <= read) break;
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_TRUE(UndoRepair(*image_, *undo_, {}).ok());
    EXPECT_TRUE(image_->bytes() == damaged_);
  }
  EXPECT_GT(faulty().reads(), 2u);
}

// It would go on from what is half done.
TEST_P(UndoFaultsTest, ARepairIsNotStartedIfAnEarlierOneCannotBeLookedAt) {
  for (uint64_t read = 0;; ++read) {
    FailRead(read);
    const absl::StatusOr<Leftover> leftover = RollBack(*image_, *undo_);
    if (faulty().reads() <= read) break;
    EXPECT_TRUE(absl::IsDataLoss(leftover.status())) << leftover.status();
    EXPECT_EQ(*RollBack(*image_, *undo_), Leftover::kRolledBack);
    EXPECT_TRUE(image_->bytes() == damaged_);
  }
}

INSTANTIATE_TEST_SUITE_P(Reads, UndoFaultsTest, ::testing::Values(Fails::kImage, Fails::kUndoFile),
                         [](const auto& test) {
                           return test.param == Fails::kImage ? "OfTheImage" : "OfTheUndoFile";
                         });

// --- Slow storage ---

BuiltImage ManyTables() {
  BuiltImage image = BuildImage({.cluster_bits = 9,
                                 .virtual_size = uint64_t{8} << 20,
                                 .steps = {WriteClusters{.count = 256, .stride = 64}}});
  for (uint64_t i = 0; i < 40; ++i) SetRefcount(image, 30 + 5 * i, 0);
  return image;
}

// Parts come back in any order; the report does not.
TEST(SlowStorageTest, ChangesNoReport) {
  const BuiltImage image = ManyTables();
  const std::string whole = Digest(CheckOneByOne(MemoryFile(image.bytes)), /*findings=*/true);
  FaultFile slow(image.bytes);
  slow.SlowDown(absl::Microseconds(200));
  EXPECT_EQ(Digest(CheckImage(slow, {.threads = 4, .part_bytes = 4096}), true), whole);
}

TEST(SlowStorageTest, TheTimeLimitEndsTheCheckWithAReport) {
  FaultFile slow(ManyTables().bytes);
  slow.SlowDown(absl::Milliseconds(20));
  const Report report = CheckImage(
      slow, {.threads = 2, .part_bytes = 1, .deadline = absl::Now() + absl::Milliseconds(100)});
  EXPECT_EQ(report.verdict, Verdict::kLimitExceeded);
  EXPECT_FALSE(report.coverage.complete());
  EXPECT_EQ(report.totals.leaks, 0u);
}

}  // namespace
}  // namespace qcow2check::testing
