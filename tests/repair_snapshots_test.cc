// The repair of snapshots: what is proven is set right, byte for byte; nothing is ever given up.
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/byte_order.h"
#include "common/snapshot_entry.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/repair.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/image_text.h"
#include "tests/repair_scenario.h"
#include "tests/sparse_file.h"

namespace qcow2check::testing {
namespace {

using ::testing::HasSubstr;

// Three snapshots that share some clusters with each other and with the disk, the last one with
// VM state.
ImageOptions ThreeSnapshots() {
  return {.cluster_bits = 12,
          .virtual_size = uint64_t{8} << 20,
          .steps = {WriteClusters{0, 30}, WriteClusters{600, 10}, TakeSnapshot{.name = "one"},
                    WriteClusters{5, 10}, TakeSnapshot{.name = "two"}, WriteClusters{605, 3},
                    TakeSnapshot{.name = "three", .vm_state_bytes = 20000}, WriteClusters{0, 3},
                    WriteClusters{1200, 4}}};
}

uint64_t EntryField(const BuiltImage& image, size_t snapshot, uint64_t field) {
  return image.snapshots[snapshot].entry_offset + field;
}

// The repaired image has the snapshots that the sound one had.
void ExpectSameSnapshots(const BuiltImage& sound, const BuiltImage& damaged) {
  const RepairedImage repaired = ExpectRepaired(damaged.bytes);
  EXPECT_EQ(SnapshotContents(repaired.bytes), SnapshotContents(sound.bytes));
}

// The repaired image is the sound one again, byte for byte.
void ExpectRestored(const BuiltImage& sound, const BuiltImage& damaged) {
  EXPECT_TRUE(ExpectRepaired(damaged.bytes).bytes == sound.bytes);
}

TEST(RepairSnapshots, EntriesWithoutExtraDataAreCompleted) {
  for (const uint32_t extra : {0, 8, 12}) {
    ImageOptions options = ThreeSnapshots();
    options.snapshot_extra_bytes = 16;
    options.version = 2;
    options.snapshot_extra_bytes = extra;
    const BuiltImage sound = BuildImage(options);
    BuiltImage image = sound;
    // As an upgrade to version 3 leaves them.
    PokeField(image, "version", 3);
    PokeField(image, "refcount_order", 4);
    PokeField(image, "header_length", 104);
    const RepairedImage repaired = ExpectRepaired(image.bytes);
    EXPECT_TRUE(HasFinding(repaired.result.before, FindingCode::kSnapshotEntryIncomplete));
    EXPECT_EQ(SnapshotContents(repaired.bytes), SnapshotContents(sound.bytes));
    const uint64_t table = Peek64(repaired.bytes, 64);
    EXPECT_EQ(Load32(&repaired.bytes[table + 36]), 24u);
    EXPECT_EQ(Peek64(repaired.bytes, table + 40), 0u) << "VM state";
    EXPECT_EQ(Peek64(repaired.bytes, table + 48), uint64_t{8} << 20) << "disk size";
    EXPECT_EQ(Peek64(repaired.bytes, table + 56), ~uint64_t{0}) << "instruction count";
  }
}

TEST(RepairSnapshots, OtherEntriesStayAsTheyAreWhenOneIsCompleted) {
  ImageOptions options = ThreeSnapshots();
  options.snapshot_extra_bytes = 40;
  const BuiltImage sound = BuildImage(options);
  BuiltImage image = sound;
  const uint64_t first = EntryField(image, 0, 0);
  // The first entry as an older program writes it; the others move up.
  const uint64_t end = image.snapshot_table.offset + image.snapshot_table.length;
  Poke32(image.bytes, first + 36, 0);
  std::vector<uint8_t> rest(image.bytes.begin() + static_cast<int64_t>(first + 80),
                            image.bytes.begin() + static_cast<int64_t>(end));
  std::copy(rest.begin(), rest.end(), image.bytes.begin() + static_cast<int64_t>(first + 40));
  Fill(image.bytes, end - 40, 40, 0);
  FillWithText(image.bytes, first + 40 + rest.size() + 8, 1);  // behind the table: not an entry
  const RepairedImage repaired = ExpectRepaired(image.bytes);
  EXPECT_EQ(SnapshotContents(repaired.bytes), SnapshotContents(sound.bytes));
  const uint64_t table = Peek64(repaired.bytes, 64);
  const auto second = sound.bytes.begin() + static_cast<int64_t>(EntryField(sound, 1, 0));
  const auto now =
      repaired.bytes.begin() + static_cast<int64_t>(table + sound.snapshots[0].entry_length - 16);
  EXPECT_TRUE(
      std::equal(second, second + static_cast<int64_t>(sound.snapshots[1].entry_length), now));
}

TEST(RepairSnapshots, DiskThatGrewSinceIsNotMappedByTheOldL1Table) {
  ImageOptions options = ThreeSnapshots();
  options.version = 2;
  options.snapshot_extra_bytes = 0;
  options.steps.push_back(Resize{uint64_t{64} << 20});
  BuiltImage image = BuildImage(options);
  PokeField(image, "version", 3);
  PokeField(image, "refcount_order", 4);
  PokeField(image, "header_length", 104);
  const RepairedImage repaired = ExpectRepaired(image.bytes);
  const uint64_t table = Peek64(repaired.bytes, 64);
  EXPECT_EQ(Peek64(repaired.bytes, table + 48), uint64_t{8} << 20);
}

TEST(RepairSnapshots, LostCountIsRestored) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  BuiltImage image = sound;
  PokeField(image, "nb_snapshots", 0);
  ExpectRestored(sound, image);
}

TEST(RepairSnapshots, LostCountStaysLostWhenALaterEntryIsDamagedToo) {
  BuiltImage image = BuildImage(ThreeSnapshots());
  PokeField(image, "nb_snapshots", 0);
  Poke64(image.bytes, EntryField(image, 1, 0), 0x7f000);
  ExpectDeclined(image.bytes, FindingCode::kSnapshotTableInvalid);
}

TEST(RepairSnapshots, TooManyAreAsManyAsThereAreEntries) {
  for (const uint64_t count : {uint64_t{4}, uint64_t{7}, uint64_t{1003}, uint64_t{70000}}) {
    const BuiltImage sound = BuildImage(ThreeSnapshots());
    BuiltImage image = sound;
    PokeField(image, "nb_snapshots", count);
    ExpectRestored(sound, image);
  }
}

TEST(RepairSnapshots, CountWithoutAnyTableIsNone) {
  ImageOptions options = ThreeSnapshots();
  options.steps = {WriteClusters{0, 30}};
  const BuiltImage sound = BuildImage(options);
  BuiltImage image = sound;
  PokeField(image, "nb_snapshots", 1);
  ExpectRestored(sound, image);
}

TEST(RepairSnapshots, EntriesThatWereZeroedAreNotTakenForNoEntries) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  BuiltImage image = sound;
  Fill(image.bytes, EntryField(image, 2, 0), image.snapshots[2].entry_length, 0);
  const RepairedImage repaired = ExpectDeclined(image.bytes, FindingCode::kSnapshotEntryIncomplete);
  EXPECT_EQ(Load32(&repaired.bytes[60]), 3u);
  const BuiltL1Table& l1 = sound.snapshots[2].l1;
  EXPECT_EQ(GetRefcount(image, image.ClusterOf(l1.offset)), 1u);
}

TEST(RepairSnapshots, TableOffsetIsRestored) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  const uint64_t offset = GetField(sound, "snapshots_offset");
  for (const uint64_t wrong :
       {offset ^ 0x200, offset ^ 0x1000, offset ^ uint64_t{1} << 40, uint64_t{0}, sound.l1.offset,
        sound.refcount_blocks[0], sound.At(0).host_offset, uint64_t{0x123000}}) {
    SCOPED_TRACE(wrong);
    BuiltImage image = sound;
    PokeField(image, "snapshots_offset", wrong);
    ExpectRestored(sound, image);
  }
}

TEST(RepairSnapshots, TableOffsetIsDeclinedWhenNoTableIsLeft) {
  BuiltImage image = BuildImage(ThreeSnapshots());
  Fill(image.bytes, image.snapshot_table.offset, image.cluster_size(), 0x55);
  PokeField(image, "snapshots_offset", 0x200);
  const RepairedImage repaired = ExpectDeclined(image.bytes, FindingCode::kSnapshotTableInvalid);
  EXPECT_NE(repaired.result.after.held_back.clusters, 0u);
}

TEST(RepairSnapshots, LengthsInAnEntryAreRestored) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  for (size_t entry = 0; entry < 3; ++entry) {
    for (const uint32_t extra : {0x8018u, 0x80000018u, 0x418u, 2000u, 0xffffffffu, 25u}) {
      SCOPED_TRACE(extra);
      BuiltImage image = sound;
      Poke32(image.bytes, EntryField(image, entry, 36), extra);
      if (extra == 25) continue;
      ExpectRestored(sound, image);
    }
    BuiltImage image = sound;
    Poke16(image.bytes, EntryField(image, entry, 14), 0x8005);
    if (entry == 0) Poke16(image.bytes, EntryField(image, entry, 14), 0x8003);
    if (entry == 1) Poke16(image.bytes, EntryField(image, entry, 14), 0x8003);
    ExpectRestored(sound, image);
  }
}

TEST(RepairSnapshots, L1OffsetIsRestored) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  for (size_t i = 0; i < 3; ++i) {
    const uint64_t offset = sound.snapshots[i].l1.offset;
    for (const uint64_t wrong : {offset ^ 0x200, offset ^ uint64_t{1} << 40, offset + 0x200,
                                 uint64_t{0}, uint64_t{0x7ffff000}, uint64_t{0x123456789abcdef0},
                                 sound.refcount_blocks[0], sound.l1.l2_tables[0].host_offset}) {
      SCOPED_TRACE(wrong);
      BuiltImage image = sound;
      Poke64(image.bytes, EntryField(image, i, 0), wrong);
      ExpectRestored(sound, image);
    }
  }
}

TEST(RepairSnapshots, L1SizeIsRestored) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  for (size_t i = 0; i < 3; ++i) {
    const uint64_t entries = sound.snapshots[i].l1.entries;
    for (const uint64_t wrong :
         {entries | 0x10000000, entries | 0x100000, uint64_t{0}, uint64_t{0xffffffff}}) {
      SCOPED_TRACE(wrong);
      BuiltImage image = sound;
      Poke32(image.bytes, EntryField(image, i, 8), static_cast<uint32_t>(wrong));
      ExpectRestored(sound, image);
    }
  }
}

TEST(RepairSnapshots, L1OfAnotherSnapshotIsNotGuessed) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  BuiltImage image = sound;
  // Both lost their L1 tables; which is whose cannot be told.
  Poke64(image.bytes, EntryField(image, 0, 0), 0x123456789abcdef0);
  Poke64(image.bytes, EntryField(image, 1, 0), 0x123456789abcdef0);
  const RepairedImage repaired = ExpectDeclined(image.bytes, FindingCode::kSnapshotL1Invalid);
  EXPECT_NE(repaired.result.after.held_back.clusters, 0u);
  // With one flipped bit each, it can.
  image = sound;
  FlipBit64(image.bytes, EntryField(image, 0, 0), 9);
  FlipBit64(image.bytes, EntryField(image, 1, 0), 40);
  ExpectRestored(sound, image);
}

// One of the snapshot's L2 tables is damaged, too. The data of the other looks like L2 tables that
// are empty, and so the table like an L1 table; it was taken for the only one that fits.
TEST(RepairSnapshots, L1IsNoL2Table) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12,
       .virtual_size = uint64_t{4} << 20,
       .steps = {WriteClusters{0, 30}, WriteClusters{512, 30}, TakeSnapshot{.name = "one"},
                 WriteClusters{0, 30}, WriteClusters{512, 30}}});
  for (const BuiltCluster& cluster : image.snapshots[0].l1.clusters) {
    if (cluster.guest_offset < uint64_t{2} << 20) continue;
    ZeroCluster(image, cluster.host_offset);
    Poke64(image.bytes, cluster.host_offset, 1);
  }
  FlipBit64(image.bytes, image.snapshots[0].l1.clusters[0].entry_offset, 43);
  FlipBit64(image.bytes, EntryField(image, 0, 0), 3);
  const RepairedImage repaired = ExpectDeclined(image.bytes, FindingCode::kSnapshotL1Invalid);
  EXPECT_NE(repaired.result.after.held_back.clusters, 0u);
}

TEST(RepairSnapshots, SharedL1TableIsToldApartByAFlippedBitOnly) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  BuiltImage image = sound;
  Poke64(image.bytes, EntryField(image, 1, 0), sound.snapshots[0].l1.offset);
  const RepairedImage repaired = Repair(image.bytes);
  // Whichever it was, what is shown by the first one did not change.
  EXPECT_EQ(SnapshotContents(repaired.bytes)[0], SnapshotContents(sound.bytes)[0]);
}

// The snapshot's pointer was believed to be the wrong one: the disk went back to the snapshot.
TEST(RepairSnapshots, ActiveL1OffsetThatLeadsToASnapshotsTableIsRestored) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  for (const BuiltSnapshot& snapshot : sound.snapshots) {
    BuiltImage image = sound;
    PokeField(image, "l1_table_offset", snapshot.l1.offset);
    EXPECT_EQ(Peek64(ExpectRepaired(image.bytes).bytes, 40), sound.l1.offset);
  }
}

// What both tables map is the same: which pointer was damaged nobody can tell.
TEST(RepairSnapshots, L1TableSharedWithTheDiskThatCannotBeToldApartIsDeclined) {
  ImageOptions options = ThreeSnapshots();
  options.steps = {WriteClusters{0, 30}, TakeSnapshot{}};
  BuiltImage image = BuildImage(options);
  CopyCluster(image, image.l1.offset, image.snapshots[0].l1.offset);
  PokeField(image, "l1_table_offset", image.snapshots[0].l1.offset);
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_EQ(Peek64(repaired.bytes, 40), image.snapshots[0].l1.offset);
  EXPECT_EQ(Peek64(repaired.bytes, EntryField(image, 0, 0)), image.snapshots[0].l1.offset);
  EXPECT_NE(repaired.result.after.verdict, Verdict::kClean);
}

// The snapshot's L2 table lost to the L1 table that the header says is there.
TEST(RepairSnapshots, ActiveL1OffsetThatLeadsToASnapshotsL2TableIsRestored) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  for (const BuiltL2Table& table : sound.snapshots[0].l1.l2_tables) {
    BuiltImage image = sound;
    PokeField(image, "l1_table_offset", table.host_offset);
    ExpectSameSnapshots(sound, image);
  }
}

TEST(RepairSnapshots, DamageElsewhereIsRepairedToo) {
  const BuiltImage sound = BuildImage(ThreeSnapshots());
  BuiltImage image = sound;
  PokeField(image, "nb_snapshots", 0);
  SetRefcount(image, image.ClusterOf(image.At(0).host_offset), 0);
  SetL2Entry(image, 0x1000, GetL2Entry(image, 0x1000) ^ kCopiedBit);
  ExpectSameSnapshots(sound, image);
}

// The header counts two snapshots, and where their table should be there is something else. A hole
// in its place would be a table of two entries that are all zeros.
TEST(RepairSnapshots, NoHoleIsPunchedWhereTheHeaderHasATable) {
  const absl::StatusOr<SparseFile> image = ParseSparseImage(
      "size 0x7000\n"
      "0x0: 51 46 49 fb 00 00 00 03\n"
      "0x10: 00 00 00 00 00 00 00 0a\n"
      "0x20: 00 00 00 00 00 00 00 03\n"
      "0x38: 00 00 00 00 00 00 00 02\n"
      "0x40: 00 00 00 00 00 00 28 00\n"
      "0x2800: 00 01 * 60\n");
  ASSERT_TRUE(image.ok()) << image.status();
  SparseFile file = *image;
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll, .free_orphans = true, .discard = true},
                  /*open_undo=*/nullptr);
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(file.Bytes(0x2800, 1024), image->Bytes(0x2800, 1024));
  EXPECT_EQ(result.after.totals.corruptions, result.plan.remaining.corruptions);
}

TEST(RepairSnapshots, DuplicatesStay) {
  BuiltImage image = BuildImage(ThreeSnapshots());
  PokeText(image.bytes, EntryField(image, 1, 40 + 24 + 1), "one");
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_TRUE(HasFinding(repaired.result.before, FindingCode::kSnapshotDuplicate));
  EXPECT_EQ(repaired.bytes, image.bytes);
}

}  // namespace
}  // namespace qcow2check::testing
