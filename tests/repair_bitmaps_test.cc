// The repair of bitmaps: what is proven is set right, a bitmap that cannot be trusted is marked as
// in use or dropped, the others and the guest's data stay as they are.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/byte_order.h"
#include "common/header_extension.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"
#include "tests/qemu.h"
#include "tests/repair_scenario.h"

namespace qcow2check::testing {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// Three bitmaps; with 4 KiB clusters and granules of 512 bytes each table has two entries.
ImageOptions ThreeBitmaps() {
  return {.cluster_bits = 12,
          .virtual_size = uint64_t{32} << 20,
          .steps = {WriteClusters{0, 40}, TakeSnapshot{.name = "one"}, WriteClusters{3, 4}},
          .bitmaps = {
              {.name = "first", .granularity_bits = 9, .dirty = {{0, 20000}, {17 << 20, 9000}}},
              {.name = "second", .granularity_bits = 9, .dirty = {{4096, 512}, {20 << 20, 512}}},
              {.name = "third", .granularity_bits = 12, .dirty = {{1 << 20, 70000}}}}};
}

uint64_t EntryField(const BuiltImage& image, size_t bitmap, uint64_t field) {
  return image.bitmaps[bitmap].entry_offset + field;
}
uint64_t ExtensionAt(const BuiltImage& image) { return image.Extension(kExtensionBitmaps).offset; }

void ExpectRestored(const BuiltImage& sound, const std::vector<uint8_t>& damaged) {
  EXPECT_TRUE(ExpectRepaired(damaged).bytes == sound.bytes);
}

// The guest reads what it read in the sound image; so does the snapshot.
RepairedImage ExpectGuestKept(const BuiltImage& sound, const std::vector<uint8_t>& damaged) {
  RepairedImage repaired = ExpectRepaired(damaged);
  EXPECT_EQ(ReadDisk({repaired.bytes, {}}, uint64_t{32} << 20).units,
            ReadDisk({sound.bytes, {}}, uint64_t{32} << 20).units);
  EXPECT_EQ(SnapshotContents(repaired.bytes), SnapshotContents(sound.bytes));
  return repaired;
}

// Nothing is wrong but that clusters are left that the dropped bitmaps used, and that are kept, as
// nothing in the image proves it any more; and there is nothing more to repair.
void ExpectOnlyOrphansLeft(const RepairedImage& repaired, const std::vector<uint8_t>& damaged) {
  EXPECT_TRUE(repaired.result.status.ok()) << repaired.result.status;
  for (const Finding& finding : repaired.result.after.findings) {
    EXPECT_THAT(finding.code, AnyOf(FindingCode::kLeakSuspicious, FindingCode::kOrphanL2Table,
                                    FindingCode::kKeptByRepair, FindingCode::kBitmapsStale,
                                    FindingCode::kLeakedCluster, FindingCode::kRefcountTooHigh,
                                    FindingCode::kBitmapInUse, FindingCode::kExtensionUnknown))
        << MessageOf(finding);
  }
  EXPECT_TRUE(Repair(repaired.bytes).result.plan.empty());
  EXPECT_TRUE(Undo(repaired) == damaged);
  if (!HaveQemu()) return;
  const TempDir dir;
  EXPECT_EQ(QemuCheck(dir.Write("t.qcow2", repaired.bytes)).corruptions, 0u);
  EXPECT_EQ(QemuCheck(dir.Write("t.qcow2", repaired.bytes)).check_errors, 0u);
}

TEST(RepairBitmaps, ExtensionIsRestored) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  const uint64_t at = ExtensionAt(sound);
  for (uint64_t byte = 0; byte < 32; ++byte) {
    for (const int bit : {0, 3, 7}) {
      SCOPED_TRACE(absl::StrCat("byte ", byte, " bit ", bit));
      std::vector<uint8_t> damaged = sound.bytes;
      FlipBit(damaged, at + byte, bit);
      ExpectRestored(sound, damaged);
    }
  }
}

TEST(RepairBitmaps, DirectoryIsFoundWhereverItIs) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  for (const uint64_t wrong : {sound.refcount_blocks[0], sound.At(0).host_offset, uint64_t{0x7f000},
                               sound.l1.l2_tables[0].host_offset, uint64_t{0x1234567890ab}}) {
    SCOPED_TRACE(wrong);
    std::vector<uint8_t> damaged = sound.bytes;
    Poke64(damaged, ExtensionAt(sound) + 24, wrong);
    if (!IsAligned(wrong, 4096)) continue;
    ExpectRestored(sound, damaged);
  }
}

TEST(RepairBitmaps, AutoclearBitWithoutExtensionIsCleared) {
  ImageOptions options = ThreeBitmaps();
  options.bitmaps = {};
  const BuiltImage sound = BuildImage(options);
  std::vector<uint8_t> damaged = sound.bytes;
  FlipBit(damaged, 95, 0);
  ExpectRestored(sound, damaged);
}

TEST(RepairBitmaps, TablePointersAreRestored) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  for (size_t i = 0; i < 3; ++i) {
    const uint64_t table = sound.bitmaps[i].table_offset;
    for (const uint64_t wrong :
         {table ^ 0x200, table ^ uint64_t{1} << 45, uint64_t{0}, uint64_t{0x7fff000},
          uint64_t{0x1122334455667788}, sound.At(0).host_offset, sound.refcount_blocks[0],
          sound.l1.l2_tables[0].host_offset, sound.l1.offset}) {
      SCOPED_TRACE(absl::StrCat(i, ": ", wrong));
      std::vector<uint8_t> damaged = sound.bytes;
      Poke64(damaged, EntryField(sound, i, 0), wrong);
      ExpectRestored(sound, damaged);
    }
    for (const uint32_t wrong : {0u, 1u, 3u, 70000u, 0xffffffffu, 0x8002u}) {
      if (wrong == sound.bitmaps[i].table_entries) continue;
      SCOPED_TRACE(absl::StrCat(i, " entries: ", wrong));
      std::vector<uint8_t> damaged = sound.bytes;
      Poke32(damaged, EntryField(sound, i, 8), wrong);
      ExpectRestored(sound, damaged);
    }
  }
}

TEST(RepairBitmaps, NameLengthIsRestored) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  for (size_t i = 0; i < 3; ++i) {
    for (const int bit : {3, 8, 15}) {
      SCOPED_TRACE(absl::StrCat(i, " bit ", bit));
      std::vector<uint8_t> damaged = sound.bytes;
      FlipBit(damaged, EntryField(sound, i, 18) + (bit < 8 ? 1 : 0), bit % 8);
      ExpectRestored(sound, damaged);
    }
  }
}

TEST(RepairBitmaps, ImpossibleEntryIsMarkedAsInUse) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  const std::vector<std::string> before = BitmapContents(sound.bytes);
  struct Case {
    uint64_t field;
    int bytes;
    uint32_t value;
  };
  for (const Case& wrong : {Case{12, 4, 0x100}, Case{12, 4, 0xffffffff}, Case{16, 1, 7},
                            Case{17, 1, 3}, Case{17, 1, 200}}) {
    SCOPED_TRACE(absl::StrCat(wrong.field, ": ", wrong.value));
    std::vector<uint8_t> damaged = sound.bytes;
    if (wrong.bytes == 4) {
      Poke32(damaged, EntryField(sound, 1, wrong.field), wrong.value);
    } else {
      damaged[EntryField(sound, 1, wrong.field)] = static_cast<uint8_t>(wrong.value);
    }
    const RepairedImage repaired = ExpectGuestKept(sound, damaged);
    const std::vector<std::string> after = BitmapContents(repaired.bytes);
    ASSERT_THAT(after, SizeIs(3));
    EXPECT_EQ(after[0], before[0]);
    EXPECT_EQ(after[2], before[2]);
    EXPECT_THAT(after[1], HasSubstr("in use"));
  }
}

TEST(RepairBitmaps, TableEntriesAreRestored) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  const uint64_t place = sound.bitmaps[1].table_offset;
  const uint64_t entry = Peek64(sound.bytes, place);
  for (const uint64_t wrong :
       {entry | 1, entry | 0x80, entry ^ 0x200, entry | uint64_t{1} << 60,
        entry ^ uint64_t{1} << 50, entry | 0x1fe, uint64_t{0x1234567890abc}}) {
    SCOPED_TRACE(wrong);
    std::vector<uint8_t> damaged = sound.bytes;
    Poke64(damaged, place, wrong);
    ExpectRestored(sound, damaged);
  }
}

TEST(RepairBitmaps, LostPartOfABitmapIsGivenUp) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  const std::vector<std::string> before = BitmapContents(sound.bytes);
  std::vector<uint8_t> damaged = sound.bytes;
  // Both entries; which of the two data clusters was whose cannot be told.
  Poke64(damaged, sound.bitmaps[1].table_offset, 0x123456789abcdef0);
  Poke64(damaged, sound.bitmaps[1].table_offset + 8, 0x123456789abcdef0);
  const RepairedImage repaired = Repair(damaged);
  const std::vector<std::string> after = BitmapContents(repaired.bytes);
  ASSERT_THAT(after, SizeIs(2));
  EXPECT_EQ(after[0], before[0]);
  EXPECT_EQ(after[1], before[2]);
  ExpectOnlyOrphansLeft(repaired, damaged);
}

TEST(RepairBitmaps, SecondOfTwoWithOneNameIsDropped) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  const std::vector<std::string> before = BitmapContents(sound.bytes);
  std::vector<uint8_t> damaged = sound.bytes;
  const uint64_t name = EntryField(sound, 2, 24);
  PokeText(damaged, name, "first");
  const RepairedImage repaired = ExpectGuestKept(sound, damaged);
  EXPECT_THAT(BitmapContents(repaired.bytes), ElementsAre(before[0], before[1]));
}

TEST(RepairBitmaps, EntryThatIsCopiedOverAnotherIsDropped) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  std::vector<uint8_t> damaged = sound.bytes;
  const auto first = damaged.begin() + static_cast<int64_t>(EntryField(sound, 0, 0));
  std::copy(first, first + static_cast<int64_t>(sound.bitmaps[0].entry_length),
            damaged.begin() + static_cast<int64_t>(EntryField(sound, 1, 0)));
  const RepairedImage repaired = Repair(damaged);
  ExpectOnlyOrphansLeft(repaired, damaged);
  const std::vector<std::string> before = BitmapContents(sound.bytes);
  EXPECT_THAT(BitmapContents(repaired.bytes), ElementsAre(before[0], before[2]));
}

TEST(RepairBitmaps, ZeroedEntryIsDropped) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  const std::vector<std::string> before = BitmapContents(sound.bytes);
  std::vector<uint8_t> damaged = sound.bytes;
  Fill(damaged, EntryField(sound, 1, 0), sound.bitmaps[1].entry_length, 0);
  const RepairedImage repaired = Repair(damaged);
  ExpectOnlyOrphansLeft(repaired, damaged);
  EXPECT_THAT(BitmapContents(repaired.bytes), ElementsAre(before[0], before[2]));
}

TEST(RepairBitmaps, DirectoryThatIsGarbageLeavesNoBitmaps) {
  for (const bool last : {true, false}) {
    ImageOptions options = ThreeBitmaps();
    if (!last) options.extensions = {{0x12345678, {1, 2, 3}}};
    const BuiltImage sound = BuildImage(options);
    std::vector<uint8_t> damaged = sound.bytes;
    FillWithGarbage(damaged, sound.bitmap_directory.offset, 4096);
    const RepairedImage repaired = Repair(damaged);
    ExpectOnlyOrphansLeft(repaired, damaged);
    EXPECT_EQ(repaired.bytes[95] & 1, 0);
  }
}

TEST(RepairBitmaps, TornDirectoryKeepsWhatIsThere) {
  ImageOptions options = ThreeBitmaps();
  options.bitmaps[0].name = std::string(480, 'x');
  const BuiltImage sound = BuildImage(options);
  const std::vector<std::string> before = BitmapContents(sound.bytes);
  std::vector<uint8_t> damaged = sound.bytes;
  const uint64_t directory = sound.bitmap_directory.offset;
  Fill(damaged, directory + 512, 4096 - 512, 0);
  const RepairedImage repaired = Repair(damaged);
  EXPECT_THAT(BitmapContents(repaired.bytes), ElementsAre(before[0]));
  ExpectOnlyOrphansLeft(repaired, damaged);
}

TEST(RepairBitmaps, DataThatTheGuestUsesIsTheGuests) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  const std::vector<std::string> before = BitmapContents(sound.bytes);
  std::vector<uint8_t> damaged = sound.bytes;
  Poke64(damaged, sound.bitmaps[1].table_offset, sound.At(0).host_offset);
  const RepairedImage repaired = Repair(damaged);
  ExpectOnlyOrphansLeft(repaired, damaged);
  const std::vector<std::string> after = BitmapContents(repaired.bytes);
  ASSERT_THAT(after, SizeIs(3));
  EXPECT_EQ(after[0], before[0]);
  EXPECT_EQ(after[2], before[2]);
  EXPECT_EQ(ReadDisk({repaired.bytes, {}}, uint64_t{32} << 20).units,
            ReadDisk({sound.bytes, {}}, uint64_t{32} << 20).units);
}

// The guest's pointer may be the damaged one: what it led to must not be freed.
TEST(RepairBitmaps, OrphanOfTheGuestIsKeptWhenTheGuestPointsToABitmap) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  for (const uint64_t target : {sound.bitmaps[1].data_offsets[0], sound.bitmaps[1].table_offset,
                                sound.bitmap_directory.offset}) {
    SCOPED_TRACE(target);
    BuiltImage image = sound;
    const uint64_t cluster = image.ClusterOf(image.At(0x8000).host_offset);
    SetL2Entry(image, 0x8000, target | kCopiedBit);
    const RepairedImage repaired = Repair(image.bytes);
    ExpectOnlyOrphansLeft(repaired, image.bytes);
    BuiltImage after = sound;
    after.bytes = repaired.bytes;
    EXPECT_NE(GetRefcount(after, cluster), 0u);
  }
}

TEST(RepairBitmaps, SharedDataIsNoBitmapAnyMore) {
  const BuiltImage sound = BuildImage(ThreeBitmaps());
  BuiltImage image = sound;
  Poke64(image.bytes, sound.bitmaps[1].table_offset, sound.bitmaps[0].data_offsets[0]);
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_EQ(repaired.result.after.totals.corruptions, 0u);
  EXPECT_THAT(BitmapContents(repaired.bytes), ElementsAre(HasSubstr("in use"), HasSubstr("in use"),
                                                          BitmapContents(sound.bytes)[2]));
}

TEST(RepairBitmaps, BitmapsInUseAndTailBitsStay) {
  ImageOptions options = ThreeBitmaps();
  options.bitmaps[0].in_use = true;
  options.virtual_size = (uint64_t{32} << 20) - (100 << 10);
  BuiltImage image = BuildImage(options);
  const uint64_t data = image.bitmaps[1].data_offsets.back();
  image.bytes[data + 4095] |= 0x80;
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_TRUE(HasFinding(repaired.result.before, FindingCode::kBitmapInUse));
  EXPECT_TRUE(HasFinding(repaired.result.before, FindingCode::kBitmapTailBits));
  EXPECT_TRUE(repaired.bytes == image.bytes);
}

TEST(RepairBitmaps, ExtensionAcrossASectorIsChangedInSteps) {
  for (const uint32_t filler : {352u, 360u, 368u, 376u, 384u}) {
    ImageOptions options = ThreeBitmaps();
    options.feature_names = false;
    // Extensions that this program does not know come behind the bitmaps: so a long header.
    options.header_length = 112 + filler;
    const BuiltImage sound = BuildImage(options);
    const std::vector<std::string> before = BitmapContents(sound.bytes);
    std::vector<uint8_t> damaged = sound.bytes;
    PokeText(damaged, EntryField(sound, 2, 24), "first");
    const RepairedImage repaired = ExpectGuestKept(sound, damaged);
    EXPECT_THAT(BitmapContents(repaired.bytes), ElementsAre(before[0], before[1]));
  }
}

}  // namespace
}  // namespace qcow2check::testing
