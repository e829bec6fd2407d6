// The undo log, and the undo of repairs that finished, were interrupted, or had not begun.
#include "repair/undo.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/byte_order.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/apply.h"
#include "repair/undo_log.h"
#include "tests/dice.h"
#include "tests/recording_file.h"

namespace qcow2check::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSector = 512;

// Bytes that differ from sector to sector; every fourth sector is zeros.
Bytes SomeBytes(uint64_t length, uint8_t first) {
  Bytes bytes(length);
  for (uint64_t i = 0; i < length; ++i) {
    if (i / kSector % 4 != 3) bytes[i] = static_cast<uint8_t>(first + i / kSector * 7 + i);
  }
  return bytes;
}

// What a plan does to an image, as if all writes were one.
class PlanFor {
 public:
  explicit PlanFor(Bytes image) : now_(std::move(image)) {
    plan_.old_size_bytes = plan_.new_size_bytes = now_.size();
    plan_.steps.emplace_back();
  }

  PlanFor& Write(uint64_t offset, Bytes bytes) {
    PlannedWrite write{.offset_bytes = offset, .length_bytes = bytes.size()};
    const auto begin = now_.begin() + static_cast<int64_t>(offset);
    write.old_bytes.assign(begin, begin + static_cast<int64_t>(bytes.size()));
    std::copy(bytes.begin(), bytes.end(), begin);
    write.new_bytes = std::move(bytes);
    plan_.steps.back().writes.push_back(std::move(write));
    return *this;
  }
  PlanFor& Copy(uint64_t from, uint64_t to, uint64_t length) {
    plan_.steps.back().writes.push_back(
        {.offset_bytes = to, .length_bytes = length, .copy_from_bytes = from});
    std::copy_n(now_.begin() + static_cast<int64_t>(from), length,
                now_.begin() + static_cast<int64_t>(to));
    return *this;
  }
  PlanFor& Flush() {
    plan_.steps.emplace_back();
    return *this;
  }
  PlanFor& Grow(uint64_t size) {
    plan_.steps.back().grow_to_bytes = size;
    plan_.new_size_bytes = size;
    now_.resize(size);
    return *this;
  }
  PlanFor& Discard(uint64_t begin, uint64_t end) {
    plan_.discards.push_back({begin, end});
    std::fill(now_.begin() + static_cast<int64_t>(begin), now_.begin() + static_cast<int64_t>(end),
              uint8_t{0});
    return *this;
  }

  const Plan& plan() const { return plan_; }
  const Bytes& result() const { return now_; }

 private:
  Plan plan_;
  Bytes now_;
};

void ApplySteps(WritableImageFile& image, const Plan& plan, size_t steps) {
  for (size_t i = 0; i < steps; ++i) ASSERT_TRUE(ApplyStep(image, plan.steps[i]).ok());
}

// The image after the whole plan, and its log.
struct Applied {
  explicit Applied(const Bytes& bytes, const PlanFor& planned) : image(bytes), log({}) {
    EXPECT_TRUE(WriteUndoLog(log, image, planned.plan()).ok());
    EXPECT_EQ(image.bytes(), bytes);
    ApplySteps(image, planned.plan(), planned.plan().steps.size());
    for (const Extent& extent : planned.plan().discards) EXPECT_TRUE(image.Discard(extent).ok());
    EXPECT_EQ(image.bytes(), planned.result());
  }

  MemoryFile image;
  MemoryFile log;
};

PlanFor SomePlan(const Bytes& image) {
  PlanFor planned(image);
  planned.Write(100, {1, 2, 3})
      .Write(5 * kSector + 500, Bytes(30, 9))  // over the border of two sectors
      .Flush()
      .Write(102, {7, 7})
      .Grow(image.size() + 5000)
      .Copy(2 * kSector, image.size() + 1000, 1024)
      .Flush()
      .Write(104, {5})
      .Discard(8 * kSector, 12 * kSector);
  return planned;
}

constexpr uint64_t kOddSize = 20 * kSector + 77;

TEST(UndoTest, GivesBackEveryByteAndTheLength) {
  const Bytes before = SomeBytes(kOddSize, 1);
  Applied applied(before, SomePlan(before));
  ASSERT_TRUE(MarkFinished(applied.log).ok());
  const absl::StatusOr<UndoResult> undone = UndoRepair(applied.image, applied.log, {});
  ASSERT_TRUE(undone.ok()) << undone.status();
  EXPECT_EQ(applied.image.bytes(), before);
  EXPECT_EQ(undone->outcome, UndoOutcome::kRestored);
  EXPECT_FALSE(undone->repair_was_interrupted);
  EXPECT_EQ(undone->old_size_bytes, kOddSize + 5000);
  EXPECT_EQ(undone->new_size_bytes, kOddSize);
  // The header's sector, two sectors of the second write, three of the discard (one was zeros).
  EXPECT_EQ(undone->ranges, 3u);
  EXPECT_EQ(undone->bytes, 6 * kSector);
}

// Pointers to what lies behind the old end must be gone when that goes.
TEST(UndoTest, TheEndIsCutOffWhenTheOldBytesAreOnDisk) {
  const Bytes before = SomeBytes(kOddSize, 1);
  const Applied applied(before, SomePlan(before));
  RecordedDisk disk;
  RecordingFile& image = disk.AddFile(applied.image.bytes());
  ASSERT_TRUE(UndoRepair(image, applied.log, {}).ok());
  Dice dice(1);
  for (size_t count = 0; count <= disk.events(); ++count) {
    for (int i = 0; i < 50; ++i) {
      const Bytes left = disk.PowerFails(count).AtRandom(dice).front();
      if (left.size() < applied.image.size_bytes()) {
        EXPECT_EQ(left, before) << "after " << count;
      }
    }
  }
}

TEST(UndoTest, TwiceIsNoMoreThanOnce) {
  const Bytes before = SomeBytes(kOddSize, 1);
  Applied applied(before, SomePlan(before));
  ASSERT_TRUE(MarkFinished(applied.log).ok());
  ASSERT_TRUE(UndoRepair(applied.image, applied.log, {}).ok());
  const absl::StatusOr<UndoResult> again = UndoRepair(applied.image, applied.log, {});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->outcome, UndoOutcome::kNothingToDo);
  EXPECT_EQ(again->bytes, 0u);
  EXPECT_EQ(applied.image.bytes(), before);
}

TEST(UndoTest, AnUnfinishedLogTakesEveryVersionOfASector) {
  const Bytes before = SomeBytes(kOddSize, 1);
  const PlanFor planned = SomePlan(before);
  for (size_t steps = 0; steps <= planned.plan().steps.size(); ++steps) {
    MemoryFile image(before), log({});
    ASSERT_TRUE(WriteUndoLog(log, image, planned.plan()).ok());
    ApplySteps(image, planned.plan(), steps);
    const absl::StatusOr<UndoResult> undone = UndoRepair(image, log, {});
    ASSERT_TRUE(undone.ok()) << undone.status();
    EXPECT_TRUE(undone->repair_was_interrupted);
    EXPECT_EQ(image.bytes(), before);
  }
}

TEST(UndoTest, AFinishedLogTakesOnlyTheLastVersion) {
  const Bytes before = SomeBytes(kOddSize, 1);
  const PlanFor planned = SomePlan(before);
  MemoryFile image(before), log({});
  ASSERT_TRUE(WriteUndoLog(log, image, planned.plan()).ok());
  ApplySteps(image, planned.plan(), 2);
  ASSERT_TRUE(MarkFinished(log).ok());
  image = MemoryFile([&] {
    Bytes bytes = image.bytes();
    bytes.resize(planned.plan().new_size_bytes);
    return bytes;
  }());
  EXPECT_THAT(UndoRepair(image, log, {}).status().message(), HasSubstr("0x0-0x1ff"));
}

// What a repair that is not undone leaves where it discarded: some file systems cannot punch holes.
TEST(UndoTest, ADiscardMayHaveDoneNothing) {
  const Bytes before = SomeBytes(kOddSize, 1);
  const PlanFor planned = SomePlan(before);
  MemoryFile image(before), log({});
  ASSERT_TRUE(WriteUndoLog(log, image, planned.plan()).ok());
  ApplySteps(image, planned.plan(), planned.plan().steps.size());
  ASSERT_TRUE(MarkFinished(log).ok());
  ASSERT_TRUE(UndoRepair(image, log, {}).ok());
  EXPECT_EQ(image.bytes(), before);
}

TEST(UndoTest, RefusesAnImageThatWasChangedSince) {
  const Bytes before = SomeBytes(kOddSize, 1);
  Applied applied(before, SomePlan(before));
  ASSERT_TRUE(MarkFinished(applied.log).ok());
  // One byte of the second sector of the second write; the end of what was added to the file.
  for (const uint64_t place : {6 * kSector + 3, kOddSize + 4999}) {
    Bytes changed = applied.image.bytes();
    changed[place] ^= 1;
    MemoryFile image(changed);
    const absl::Status refused = UndoRepair(image, applied.log, {}).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
    EXPECT_THAT(refused.message(), HasSubstr("was changed since"));
    EXPECT_EQ(image.bytes(), changed);
    const auto forced = UndoRepair(image, applied.log, {.force = true});
    ASSERT_TRUE(forced.ok()) << forced.status();
    EXPECT_TRUE(forced->forced);
    // What somebody wrote behind the old end is not cut off.
    Bytes expected = before;
    if (place >= before.size()) {
      expected.insert(expected.end(), changed.begin() + kOddSize, changed.end());
    }
    EXPECT_EQ(image.bytes(), expected);
  }
  // What the repair did not touch does not concern it.
  Bytes changed = applied.image.bytes();
  changed[13 * kSector] ^= 1;
  MemoryFile image(changed);
  EXPECT_TRUE(UndoRepair(image, applied.log, {}).ok());
}

TEST(UndoTest, RefusesAnotherLength) {
  const Bytes before = SomeBytes(kOddSize, 1);
  Applied applied(before, SomePlan(before));
  ASSERT_TRUE(MarkFinished(applied.log).ok());
  for (const uint64_t size : {uint64_t{1024}, kOddSize - 1, kOddSize + 1, kOddSize + 5001}) {
    Bytes other = applied.image.bytes();
    other.resize(size);
    MemoryFile image(other);
    const absl::Status refused = UndoRepair(image, applied.log, {}).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
    EXPECT_THAT(refused.message(), HasSubstr("bytes long"));
    EXPECT_EQ(image.bytes(), other);
    ASSERT_TRUE(UndoRepair(image, applied.log, {.force = true}).ok());
    EXPECT_EQ(image.size_bytes(), std::max(size, kOddSize));
  }
}

// The same where the repair wrote, another header; and one that differs where the repair wrote the
// header, so that the old bytes would hide it. Force is for what was changed, not for another disk.
TEST(UndoTest, RefusesAnotherImageForceOrNot) {
  const Bytes before = SomeBytes(kOddSize, 1);
  const PlanFor beside = PlanFor(before).Write(10 * kSector, Bytes(4, 1));
  const PlanFor in_header = PlanFor(before).Write(0, Bytes(4, 1));
  for (const PlanFor& planned : {beside, in_header}) {
    for (const bool force : {false, true}) {
      Applied applied(before, planned);
      Bytes other = applied.image.bytes();
      other[200] ^= 1;
      MemoryFile image(other);
      const absl::Status refused = UndoRepair(image, applied.log, {.force = force}).status();
      EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
      EXPECT_THAT(refused.message(), HasSubstr("another image"));
      EXPECT_EQ(image.bytes(), other);
    }
  }
}

// Nobody can tell from such a log what the image was.
TEST(UndoTest, ADamagedLogIsNeverUsed) {
  const Bytes before = SomeBytes(kOddSize, 1);
  const Applied applied(before, SomePlan(before));
  const Bytes& log = applied.log.bytes();
  std::vector<Bytes> damaged;
  for (uint64_t at = 8; at < log.size() - kSector; at += 37) {
    damaged.push_back(log);
    damaged.back()[at] ^= 0x10;
  }
  for (uint64_t size = log.size() - 1; size > 3 * kSector; size -= 999) {
    damaged.push_back(log);
    damaged.back().resize(size);
  }
  damaged.push_back(log);
  damaged.back().push_back(0);
  for (const Bytes& bytes : damaged) {
    MemoryFile image(applied.image.bytes());
    for (const bool force : {false, true}) {
      const absl::Status refused = UndoRepair(image, MemoryFile(bytes), {.force = force}).status();
      EXPECT_FALSE(refused.ok());
      EXPECT_FALSE(absl::IsFailedPrecondition(refused)) << refused;
    }
    EXPECT_EQ(image.bytes(), applied.image.bytes());
  }
}

TEST(UndoTest, WhatIsNoLog) {
  MemoryFile image(SomeBytes(4096, 1));
  EXPECT_THAT(UndoRepair(image, MemoryFile(SomeBytes(4096, 2)), {}).status().message(),
              HasSubstr("no undo file"));
  // Zeros, but more than the header that a repair writes first.
  EXPECT_FALSE(UndoRepair(image, MemoryFile(Bytes(4096)), {}).ok());
}

TEST(UndoTest, ALaterVersionIsNotGuessedAt) {
  const Bytes before = SomeBytes(kOddSize, 1);
  Applied applied(before, SomePlan(before));
  Bytes log = applied.log.bytes();
  Store32(&log[8], 2);
  EXPECT_THAT(UndoRepair(applied.image, MemoryFile(log), {}).status().message(),
              HasSubstr("version 2"));
}

// Before the log is complete nothing in the image has changed.
TEST(UndoTest, ALogThatWasNotFinished) {
  const Bytes before = SomeBytes(kOddSize, 1);
  const PlanFor planned = SomePlan(before);
  RecordedDisk disk;
  ASSERT_TRUE(WriteUndoLog(disk.AddFile({}), MemoryFile(before), planned.plan()).ok());
  Dice dice(1);
  int complete = 0;
  for (size_t count = 0; count <= disk.events(); ++count) {
    std::vector<DiskState> states = disk.KilledInside(count);
    states.push_back(disk.Killed(count));
    for (int i = 0; i < 20; ++i) states.push_back(disk.PowerFails(count).AtRandom(dice));
    for (const DiskState& state : states) {
      MemoryFile image(before);
      const absl::StatusOr<UndoResult> undone = UndoRepair(image, MemoryFile(state[0]), {});
      ASSERT_TRUE(undone.ok()) << undone.status();
      EXPECT_EQ(image.bytes(), before);
      if (undone->outcome != UndoOutcome::kNeverBegun) ++complete;
    }
  }
  EXPECT_GT(complete, 0);
}

TEST(UndoTest, AMarkThatIsHalfWrittenIsNone) {
  const Bytes before = SomeBytes(kOddSize, 1);
  Applied applied(before, SomePlan(before));
  Bytes log = applied.log.bytes();
  ASSERT_TRUE(MarkFinished(applied.log).ok());
  const Bytes& marked = applied.log.bytes();
  ASSERT_EQ(log.size(), marked.size());
  EXPECT_EQ(ReadUndoLog(MemoryFile(marked))->state, UndoLogState::kFinished);
  for (uint64_t at = log.size() - kSector; at < log.size() - 1; ++at) {
    log[at] = marked[at];
    EXPECT_EQ(ReadUndoLog(MemoryFile(log))->state, UndoLogState::kUnfinished);
  }
}

// --- What a log needs ---

TEST(UndoTest, ZerosTakeNoRoom) {
  const Bytes before(4 << 20);
  PlanFor planned(before);
  planned.Write(1 << 20, Bytes(2 << 20, 1));
  const Applied applied(before, planned);
  EXPECT_LT(applied.log.size_bytes(), 100u << 10);
}

TEST(UndoTest, WhatTheImageDoesNotHoldIsNoticedFirst) {
  const Bytes before = SomeBytes(kOddSize, 1);
  const PlanFor planned = SomePlan(before);
  Bytes changed = before;
  changed[5 * kSector + 501] ^= 1;
  MemoryFile log({});
  const absl::Status status = WriteUndoLog(log, MemoryFile(changed), planned.plan());
  EXPECT_TRUE(absl::IsAborted(status)) << status;
}

// --- Many at random ---

PlanFor RandomPlan(Dice& dice, const Bytes& image) {
  PlanFor planned(image);
  uint64_t size = image.size();
  const uint64_t steps = dice.Between(1, 4);
  for (uint64_t step = 0; step < steps; ++step) {
    if (dice.Percent(30)) planned.Grow(size += dice.Between(1, 3000));
    for (uint64_t i = dice.Below(6); i > 0; --i) {
      const uint64_t offset = dice.Below(size);
      const uint64_t length = dice.Between(1, std::min<uint64_t>(size - offset, 2000));
      planned.Write(offset, SomeBytes(length, static_cast<uint8_t>(dice.Below(256))));
    }
    planned.Flush();
  }
  return planned;
}

TEST(UndoTest, AnyPlan) {
  Dice dice(7);
  for (int i = 0; i < 500; ++i) {
    const Bytes before = SomeBytes(dice.Between(1, 40'000), static_cast<uint8_t>(i));
    const PlanFor planned = RandomPlan(dice, before);
    Applied applied(before, planned);
    if (dice.Percent(50)) {
      ASSERT_TRUE(MarkFinished(applied.log).ok());
    }
    const absl::StatusOr<UndoResult> undone = UndoRepair(applied.image, applied.log, {});
    ASSERT_TRUE(undone.ok()) << i << undone.status();
    ASSERT_EQ(applied.image.bytes(), before) << i;
  }
}

// --- At the start of a repair ---

TEST(RollBackTest, OnlyAnInterruptedRepairOfThisImage) {
  const Bytes before = SomeBytes(kOddSize, 1);
  const PlanFor planned = SomePlan(before);
  MemoryFile image(before), log({});
  ASSERT_TRUE(WriteUndoLog(log, image, planned.plan()).ok());
  ApplySteps(image, planned.plan(), 2);
  const Bytes half = image.bytes();

  MemoryFile other(SomeBytes(kOddSize, 2));
  EXPECT_EQ(*RollBack(other, log), Leftover::kNone);
  EXPECT_EQ(other.bytes(), SomeBytes(kOddSize, 2));

  MemoryFile used([&] {
    Bytes bytes = half;
    bytes[100] ^= 0xff;
    return bytes;
  }());
  EXPECT_EQ(*RollBack(used, log), Leftover::kNone);

  EXPECT_EQ(*RollBack(image, log), Leftover::kRolledBack);
  EXPECT_EQ(image.bytes(), before);
  EXPECT_EQ(*RollBack(image, MemoryFile({})), Leftover::kUseless);
  EXPECT_EQ(*RollBack(image, MemoryFile(SomeBytes(3000, 1))), Leftover::kNone);

  ASSERT_TRUE(MarkFinished(log).ok());
  MemoryFile finished(planned.result());
  EXPECT_EQ(*RollBack(finished, log), Leftover::kNone);
  EXPECT_EQ(finished.bytes(), planned.result());
}

}  // namespace
}  // namespace qcow2check::testing
