// Carrying out a plan: in which order things reach the disk, and what happens when they do not.
#include "repair/apply.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "checker/check.h"
#include "common/header.h"
#include "common/memory_file.h"
#include "common/table_entry.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/patched_file.h"
#include "repair/plan.h"
#include "repair/repair.h"
#include "repair/undo.h"
#include "repair/undo_log.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/recording_file.h"
#include "tests/repair_scenario.h"
#include "tests/sparse_file.h"

namespace qcow2check::testing {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::Eq;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

// --- One step ---

PlannedWrite WriteOf(uint64_t offset, Bytes old_bytes, Bytes new_bytes) {
  return {.offset_bytes = offset,
          .length_bytes = new_bytes.size(),
          .old_bytes = std::move(old_bytes),
          .new_bytes = std::move(new_bytes)};
}

TEST(ApplyStepTest, WritesGrowsAndCopies) {
  MemoryFile image({1, 2, 3, 4});
  PlanStep step{.grow_to_bytes = 8};
  step.writes.push_back(WriteOf(1, {2}, {9}));
  step.writes.push_back(WriteOf(4, {}, {5}));
  step.writes.push_back({.offset_bytes = 6, .length_bytes = 2, .copy_from_bytes = 2});
  ASSERT_TRUE(ApplyStep(image, step).ok());
  EXPECT_THAT(image.bytes(), ElementsAre(1, 9, 3, 4, 5, 0, 3, 4));
}

TEST(ApplyStepTest, LaterWritesSeeEarlierOnes) {
  MemoryFile image({1, 2, 3, 4});
  PlanStep step;
  step.writes.push_back(WriteOf(0, {1, 2}, {8, 8}));
  step.writes.push_back(WriteOf(1, {8, 3}, {7, 7}));
  ASSERT_TRUE(ApplyStep(image, step).ok());
  EXPECT_THAT(image.bytes(), ElementsAre(8, 7, 7, 4));
}

TEST(ApplyStepTest, StopsBeforeWhatSomebodyElseChanged) {
  MemoryFile image({1, 2, 3, 4});
  PlanStep step;
  step.writes.push_back(WriteOf(0, {1}, {8}));
  step.writes.push_back(WriteOf(2, {0}, {8}));
  step.writes.push_back(WriteOf(3, {4}, {8}));
  const absl::Status status = ApplyStep(image, step);
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("0x2"));
  EXPECT_THAT(image.bytes(), ElementsAre(8, 2, 3, 4));
}

TEST(ApplyStepTest, NewPlacesMustBeEmpty) {
  MemoryFile image({1, 2, 3, 4});
  PlanStep step;
  step.writes.push_back(WriteOf(0, {}, {8}));
  EXPECT_TRUE(absl::IsAborted(ApplyStep(image, step)));
  EXPECT_THAT(image.bytes(), ElementsAre(1, 2, 3, 4));
}

TEST(ApplyStepTest, CopiesMuchInPieces) {
  constexpr uint64_t kLength = (3 << 20) + 512;
  Bytes bytes(2 * kLength);
  for (uint64_t i = 0; i < kLength; ++i) bytes[i] = static_cast<uint8_t>(i * 31 >> 7);
  MemoryFile image(bytes);
  PlanStep step;
  step.writes.push_back({.offset_bytes = kLength, .length_bytes = kLength, .copy_from_bytes = 0});
  ASSERT_TRUE(ApplyStep(image, step).ok());
  std::copy_n(bytes.begin(), kLength, bytes.begin() + kLength);
  EXPECT_EQ(image.bytes(), bytes);
}

std::vector<PlannedWrite> WritesOfOne(std::vector<uint64_t> offsets) {
  std::vector<PlannedWrite> writes;
  for (const uint64_t offset : offsets) writes.push_back(WriteOf(offset, {}, {1}));
  return writes;
}

// How many writes reach the file for one byte at each of the offsets.
size_t CountWrites(std::vector<uint64_t> offsets) {
  RecordedDisk disk;
  RecordingFile& image = disk.AddFile(Bytes(4 << 20));
  EXPECT_TRUE(ApplyStep(image, {.writes = WritesOfOne(offsets)}).ok());
  Bytes expected(4 << 20);
  for (const uint64_t offset : offsets) expected[offset] = 1;
  EXPECT_EQ(image.bytes(), expected);
  return disk.events() - 1;  // the flush
}

TEST(ApplyStepTest, WritesInTheSameOrAdjoiningSectorsAreOne) {
  EXPECT_EQ(CountWrites({0, 1, 2}), 1u);
  EXPECT_EQ(CountWrites({0, 511}), 1u);
  EXPECT_EQ(CountWrites({0, 512}), 1u);
  EXPECT_EQ(CountWrites({0, 1023}), 1u);
  EXPECT_EQ(CountWrites({511, 512, 1024, 2047}), 1u);
  EXPECT_EQ(CountWrites({0, 1024}), 2u);
  EXPECT_EQ(CountWrites({600, 0}), 2u) << "what comes earlier in the plan is not written later";
  EXPECT_EQ(CountWrites({0, 5000, 5001, 9000}), 3u);
}

TEST(ApplyStepTest, NoWriteIsLongerThanAMebibyte) {
  constexpr uint64_t kMebibyte = 1 << 20;
  std::vector<uint64_t> offsets;
  for (uint64_t at = 0; at < 3 * kMebibyte; at += 512) offsets.push_back(at);
  EXPECT_EQ(CountWrites(offsets), 3u);
}

TEST(ApplyStepTest, WritesWhatComesBeforeAChangedByteOfTheSameSector) {
  MemoryFile image({1, 2, 3, 4});
  PlanStep step;
  step.writes.push_back(WriteOf(0, {1}, {8}));
  step.writes.push_back(WriteOf(1, {0}, {8}));
  step.writes.push_back(WriteOf(2, {3}, {8}));
  EXPECT_TRUE(absl::IsAborted(ApplyStep(image, step)));
  EXPECT_THAT(image.bytes(), ElementsAre(8, 2, 3, 4));
}

// --- A whole plan ---

// A leak, a refcount that is too low, and the corrupt bit.
Bytes DamagedImage() {
  BuiltImage image = BuildImage({.cluster_bits = 9,
                                 .virtual_size = 64 << 10,
                                 .corrupt = true,
                                 .steps = {WriteClusters{.count = 8}}});
  SetRefcount(image, image.ClusterOf(image.At(512).host_offset), 0);
  SetL2Entry(image, 7 * 512, 0);
  return image.bytes;
}

bool HasCorruptBit(const Bytes& image) { return (image[79] & 2) != 0; }

// A file for RepairImage that is looked at afterwards.
OpenUndoFile Lend(WritableImageFile& file) {
  return [&file]() -> absl::StatusOr<std::unique_ptr<WritableImageFile>> {
    return std::make_unique<FailingFile>(file);
  };
}

TEST(ApplyPlanTest, RepairsAndMarksTheLog) {
  const Bytes damaged = DamagedImage();
  ASSERT_TRUE(HasCorruptBit(damaged));
  MemoryFile image(damaged), undo({});
  const RepairResult result = RepairImage(image, {}, {}, Lend(undo));
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_TRUE(result.changed);
  EXPECT_FALSE(HasCorruptBit(image.bytes()));
  EXPECT_EQ(result.after.totals.corruptions, 0u);
  EXPECT_EQ(result.corruptions_fixed, result.before.totals.corruptions);
  EXPECT_EQ(ReadUndoLog(undo)->state, UndoLogState::kFinished);
  EXPECT_EQ(CheckImage(image, {}).totals.corruptions, 0u);
}

TEST(ApplyPlanTest, TheSameWithoutAnUndoFile) {
  const Bytes damaged = DamagedImage();
  MemoryFile with(damaged), without(damaged), undo({});
  ASSERT_TRUE(RepairImage(with, {}, {}, Lend(undo)).status.ok());
  ASSERT_TRUE(RepairImage(without, {}, {}, nullptr).status.ok());
  EXPECT_EQ(with.bytes(), without.bytes());
}

TEST(ApplyPlanTest, ASoundImageIsNotTouched) {
  RecordedDisk disk;
  RecordingFile& image =
      disk.AddFile(BuildImage({.cluster_bits = 9, .steps = {WriteClusters{.count = 8}}}).bytes);
  const RepairResult result =
      RepairImage(image, {}, {}, []() -> absl::StatusOr<std::unique_ptr<WritableImageFile>> {
        return absl::InternalError("no undo file is needed");
      });
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_FALSE(result.changed);
  EXPECT_EQ(disk.events(), 0u);
}

TEST(ApplyPlanTest, AnImageOfAnotherLengthIsNotTouched) {
  const Bytes damaged = DamagedImage();
  const Plan plan = MakePlan(MemoryFile(damaged), {});
  Bytes longer = damaged;
  longer.resize(damaged.size() + 512);
  MemoryFile image(longer), undo({});
  const ApplyResult result = ApplyPlan(image, plan, &undo);
  EXPECT_TRUE(absl::IsAborted(result.status)) << result.status;
  EXPECT_FALSE(result.changed);
  EXPECT_EQ(image.bytes(), longer);
}

TEST(ApplyPlanTest, AnImageThatChangedSinceThePlanIsNotTouched) {
  const Bytes damaged = DamagedImage();
  const Plan plan = MakePlan(MemoryFile(damaged), {});
  ASSERT_THAT(plan.steps, Not(IsEmpty()));
  Bytes changed = damaged;
  changed[plan.steps.back().writes.back().offset_bytes] ^= 0x40;
  MemoryFile image(changed), undo({});
  const ApplyResult result = ApplyPlan(image, plan, &undo);
  EXPECT_TRUE(absl::IsAborted(result.status)) << result.status;
  EXPECT_FALSE(result.changed);
  EXPECT_EQ(image.bytes(), changed);
}

// The closing step waits for a check of what is on the disk.
TEST(ApplyPlanTest, TheCorruptBitStaysWhenTheCheckFindsMore) {
  MemoryFile image(DamagedImage()), undo({});
  Plan plan = MakePlan(image, {});
  ASSERT_THAT(plan.closing.writes, Not(IsEmpty()));
  ASSERT_THAT(plan.steps, Not(IsEmpty()));
  plan.steps.clear();
  const ApplyResult result = ApplyPlan(image, plan, &undo);
  EXPECT_TRUE(absl::IsDataLoss(result.status)) << result.status;
  EXPECT_TRUE(HasCorruptBit(image.bytes()));
  EXPECT_EQ(ReadUndoLog(undo)->state, UndoLogState::kUnfinished);
}

// As on a file system that stores no zeros.
class FileWithoutZeros : public SparseFile {
 public:
  using SparseFile::SparseFile;
  absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) override {
    absl::Status status = SparseFile::WriteAt(offset, src);
    for (uint64_t page = offset.bytes / kPageBytes; page * kPageBytes < size_bytes(); ++page) {
      const Extent extent = {page * kPageBytes, (page + 1) * kPageBytes};
      if (ReadsAsZeros(*this, extent.begin_bytes, kPageBytes)) status.Update(Discard(extent));
    }
    return status;
  }
};

// A table that lies in a hole beside orphans was lost, but not if its only entry was given up.
TEST(ApplyPlanTest, WrittenZerosMayBecomeAHole) {
  BuiltImage image = BuildImage({.version = 2,
                                 .cluster_bits = 12,
                                 .steps = {WriteClusters{}, WriteClusters{.first = 512},
                                           WriteClusters{.first = 1, .count = 20}}});
  const uint64_t table = image.L2At(1).host_offset;
  SetL2Entry(image, uint64_t{512} << 12, kCopiedBit | 0x123457000);
  for (uint64_t i = 8; i < 20; ++i) SetL2Entry(image, i << 12, 0);
  FileWithoutZeros file(image.bytes);
  const RepairResult result = RepairImage(file, {}, {.mode = RepairMode::kAll}, nullptr);
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_TRUE(file.IsHole({table, table + 4096}));
  EXPECT_TRUE(HasFinding(CheckImage(file, {}), FindingCode::kL2TableLost));
}

TEST(ApplyPlanTest, NothingIsWrittenBeforeTheLogIsFlushed) {
  RecordedDisk disk;
  RecordingFile& image = disk.AddFile(DamagedImage());
  RecordingFile& undo = disk.AddFile({});
  const Bytes damaged = image.bytes();
  ASSERT_TRUE(RepairImage(image, {}, {}, Lend(undo)).status.ok());
  for (size_t count = 0; count <= disk.events(); ++count) {
    // Nothing unflushed survives.
    const DiskState state = disk.PowerFails(count).Way(0);
    const absl::StatusOr<UndoLog> log = ReadUndoLog(MemoryFile(state[1]));
    ASSERT_TRUE(log.ok()) << log.status();
    if (log->state != UndoLogState::kIncomplete) continue;
    EXPECT_EQ(disk.Killed(count)[0], damaged);
  }
}

std::string PartOf(const Bytes& bytes, const Extent& part) {
  return std::string(bytes.begin() + static_cast<int64_t>(part.begin_bytes),
                     bytes.begin() + static_cast<int64_t>(part.end_bytes));
}

TEST(ApplyPlanTest, DiscardsComeLast) {
  RecordedDisk disk;
  RecordingFile& image = disk.AddFile(DamagedImage());
  RecordingFile& undo = disk.AddFile({});
  const Bytes damaged = image.bytes();
  RepairOptions options{.free_orphans = true, .discard = true};
  const RepairResult result = RepairImage(image, {}, options, Lend(undo));
  ASSERT_TRUE(result.status.ok()) << result.status;
  ASSERT_THAT(result.plan.discards, SizeIs(1));
  const Extent& hole = result.plan.discards[0];
  EXPECT_EQ(PartOf(image.bytes(), hole), std::string(hole.end_bytes - hole.begin_bytes, '\0'));
  for (size_t count = 0; count <= disk.events(); ++count) {
    const DiskState state = disk.Killed(count);
    if (PartOf(state[0], hole) == PartOf(damaged, hole)) continue;
    EXPECT_FALSE(HasCorruptBit(state[0]));
  }
  MemoryFile undone(image.bytes());
  ASSERT_TRUE(UndoRepair(undone, undo, {}).ok());
  EXPECT_EQ(undone.bytes(), damaged);
}

// --- Disks that fail ---

class FailureTest : public ::testing::TestWithParam<absl::StatusCode> {
 protected:
  absl::Status Failure() const { return absl::Status(GetParam(), "the disk fails"); }
};

// Full, or broken: at every operation on the image in turn.
TEST_P(FailureTest, OfTheImage) {
  const Bytes damaged = DamagedImage();
  Bytes repaired;
  {
    MemoryFile image(damaged);
    ASSERT_TRUE(RepairImage(image, {}, {}, nullptr).status.ok());
    repaired = image.bytes();
  }
  for (uint64_t operation = 0;; ++operation) {
    MemoryFile image(damaged), undo({});
    FailingFile failing(image);
    failing.FailAt(operation, Failure());
    const RepairResult result = RepairImage(failing, {}, {}, Lend(undo));
    if (failing.operations() <= operation) {
      EXPECT_TRUE(result.status.ok()) << result.status;
      EXPECT_GT(operation, 2u);
      break;
    }
    EXPECT_EQ(result.status.code(), GetParam());
    EXPECT_THAT(result.status.message(), HasSubstr("the disk fails"));
    EXPECT_TRUE(result.changed);
    // The report is of what is there now.
    EXPECT_EQ(result.after.totals.corruptions, CheckImage(image, {}).totals.corruptions);
    for (size_t i = 0; i < result.repairs.size(); ++i) {
      EXPECT_THAT(result.repairs[i].status,
                  AnyOf(Eq(RepairStatus::kDone), Eq(RepairStatus::kFailed),
                        Eq(RepairStatus::kDeclined), Eq(RepairStatus::kNone)));
    }
    MemoryFile again(image.bytes());
    ASSERT_EQ(*RollBack(again, undo), Leftover::kRolledBack);
    EXPECT_EQ(again.bytes(), damaged);
    ASSERT_TRUE(UndoRepair(image, undo, {}).ok());
    EXPECT_EQ(image.bytes(), damaged);
    ASSERT_TRUE(RepairImage(again, {}, {}, nullptr).status.ok());
    EXPECT_EQ(again.bytes(), repaired);
  }
}

TEST_P(FailureTest, OfTheUndoFile) {
  const Bytes damaged = DamagedImage();
  for (uint64_t operation = 0;; ++operation) {
    MemoryFile image(damaged), undo({});
    FailingFile failing(undo);
    failing.FailAt(operation, Failure());
    const RepairResult result = RepairImage(image, {}, {}, Lend(failing));
    if (failing.operations() <= operation) {
      EXPECT_TRUE(result.status.ok()) << result.status;
      EXPECT_GT(operation, 4u);
      break;
    }
    EXPECT_EQ(result.status.code(), GetParam());
    if (!result.changed) {
      EXPECT_EQ(image.bytes(), damaged);
      EXPECT_EQ(result.corruptions_fixed, 0u);
    } else {
      // Only the mark was lost.
      EXPECT_THAT(result.status.message(), HasSubstr("the repair is done"));
      EXPECT_EQ(result.after.totals.corruptions, 0u);
    }
    ASSERT_TRUE(UndoRepair(image, undo, {}).ok());
    EXPECT_EQ(image.bytes(), damaged);
  }
}

TEST_P(FailureTest, OfTheUndo) {
  const Bytes damaged = DamagedImage();
  MemoryFile repaired(damaged), undo({});
  ASSERT_TRUE(RepairImage(repaired, {}, {}, Lend(undo)).status.ok());
  for (uint64_t operation = 0;; ++operation) {
    MemoryFile image(repaired.bytes());
    FailingFile failing(image);
    failing.FailAt(operation, Failure());
    const absl::Status status = UndoRepair(failing, undo, {}).status();
    if (failing.operations() <= operation) {
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_GT(operation, 1u);
      break;
    }
    EXPECT_EQ(status.code(), GetParam());
    ASSERT_TRUE(UndoRepair(image, undo, {}).ok());
    EXPECT_EQ(image.bytes(), damaged);
  }
}

TEST_P(FailureTest, AnUndoFileThatCannotBeMade) {
  const Bytes damaged = DamagedImage();
  MemoryFile image(damaged);
  const RepairResult result = RepairImage(
      image, {}, {},
      [this]() -> absl::StatusOr<std::unique_ptr<WritableImageFile>> { return Failure(); });
  EXPECT_EQ(result.status.code(), GetParam());
  EXPECT_FALSE(result.changed);
  EXPECT_EQ(image.bytes(), damaged);
  EXPECT_EQ(result.after.totals.corruptions, result.before.totals.corruptions);
  for (const FindingRepair& repair : result.repairs) {
    EXPECT_NE(repair.status, RepairStatus::kDone);
    EXPECT_NE(repair.status, RepairStatus::kPlanned);
  }
}

INSTANTIATE_TEST_SUITE_P(Disk, FailureTest,
                         ::testing::Values(absl::StatusCode::kResourceExhausted,
                                           absl::StatusCode::kDataLoss),
                         [](const auto& test) {
                           return test.param == absl::StatusCode::kDataLoss ? "Broken" : "Full";
                         });

// --- What is said of each finding ---

TEST(StatusTest, ADryRunSaysWhatTheRepairThenDoes) {
  const Bytes damaged = DamagedImage();
  MemoryFile image(damaged), undo({});
  const RepairResult dry = PlanRepair(image, {}, {});
  EXPECT_EQ(image.bytes(), damaged);
  EXPECT_FALSE(dry.changed);
  EXPECT_EQ(dry.corruptions_fixed, 0u);
  const RepairResult real = RepairImage(image, {}, {}, Lend(undo));
  ASSERT_EQ(dry.repairs.size(), real.repairs.size());
  ASSERT_EQ(real.repairs.size(), real.before.findings.size());
  int done = 0;
  for (size_t i = 0; i < dry.repairs.size(); ++i) {
    if (dry.repairs[i].status == RepairStatus::kPlanned) {
      EXPECT_EQ(real.repairs[i].status, RepairStatus::kDone) << i;
      ++done;
    } else {
      EXPECT_EQ(real.repairs[i].status, dry.repairs[i].status) << i;
    }
  }
  EXPECT_GT(done, 1);
}

TEST(StatusTest, WhatIsDeclinedSaysWhy) {
  MemoryFile image(DamagedImage());
  const RepairResult result = RepairImage(image, {}, {.mode = RepairMode::kLeaks}, nullptr);
  EXPECT_FALSE(result.changed);
  for (size_t i = 0; i < result.repairs.size(); ++i) {
    const Severity severity = InfoOf(result.before.findings[i].code).severity;
    if (severity != Severity::kCorruption && severity != Severity::kLeak) continue;
    EXPECT_EQ(result.repairs[i].status, RepairStatus::kDeclined);
    EXPECT_NE(result.repairs[i].reason, "");
  }
}

}  // namespace
}  // namespace qcow2check::testing
