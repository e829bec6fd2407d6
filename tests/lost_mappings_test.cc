// Mappings that were lost without a trace of their own: what they led to looks like waste, and must
// not be taken for it. And what only looks like a loss.
#include <cstdint>
#include <vector>

#include "checker/check.h"
#include "common/memory_file.h"
#include "common/table_entry.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/repair.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/repair_scenario.h"

namespace qcow2check::testing {
namespace {

using ::testing::IsEmpty;

Report Check(const std::vector<uint8_t>& bytes) { return CheckImage(MemoryFile(bytes), {}); }

RepairResult Repair(MemoryFile& file, const RepairOptions& options = {.mode = RepairMode::kAll}) {
  RepairResult result = RepairImage(file, {}, options, /*open_undo=*/nullptr);
  EXPECT_TRUE(result.status.ok()) << result.status;
  return result;
}

// The disk's second L2 table is the one that is lost.
constexpr uint64_t kSecondTable = 512;

BuiltImage WithTwoTables() {
  return BuildImage(
      {.cluster_bits = 12,
       .steps = {WriteClusters{.count = 8}, WriteClusters{.first = kSecondTable, .count = 40}}});
}

void ExpectHeldBack(const std::vector<uint8_t>& bytes, FindingCode code) {
  const Report report = Check(bytes);
  EXPECT_TRUE(HasFinding(report, code));
  EXPECT_NE(report.held_back.clusters, 0u);
  MemoryFile file(bytes);
  Repair(file, {.mode = RepairMode::kLeaks, .discard = true});
  EXPECT_EQ(file.bytes(), bytes);
}

TEST(LostMappings, OfCompressedClusters) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12,
       .steps = {WriteClusters{.count = 8}, WriteCompressed{.first = kSecondTable, .count = 40}}});
  SetL1Entry(image, 1, 0);
  ExpectHeldBack(image.bytes, FindingCode::kOrphanL2Table);
}

// Most of what the table maps is still in use, by the snapshot: counted twice, referenced once.
TEST(LostMappings, OfWhatASnapshotShares) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12,
       .virtual_size = uint64_t{4} << 20,
       .steps = {WriteClusters{.count = 8}, WriteClusters{.first = kSecondTable, .count = 40},
                 TakeSnapshot{}, WriteClusters{.first = kSecondTable, .count = 4}}});
  const std::vector<uint8_t> sound = image.bytes;
  SetL1Entry(image, 1, 0);
  ExpectHeldBack(image.bytes, FindingCode::kOrphanL2Table);
  MemoryFile file(image.bytes);
  Repair(file);
  EXPECT_EQ(file.bytes(), sound);
}

TEST(LostMappings, OfADataFile) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12, .data_file = DataFileOptions{}, .steps = {WriteClusters{.count = 40}}});
  SetL1Entry(image, 0, 0);
  ExpectHeldBack(image.bytes, FindingCode::kOrphanL2Table);
}

// An orphan is waste only if it was looked at: here it is the last of them that is a table.
TEST(LostMappings, BehindManyLeaks) {
  constexpr uint64_t kTables = 36;
  BuiltImage image =
      BuildImage({.cluster_bits = 12,
                  .virtual_size = uint64_t{1} << 30,
                  .steps = {WriteClusters{.count = kTables * kSecondTable},
                            WriteClusters{.first = kTables * kSecondTable, .count = 40}}});
  for (uint64_t i = 0; i < kTables * kSecondTable; ++i) {
    // Some stay, or the table would be called a torn one.
    if (i % 64 != 5 && i % kSecondTable != kSecondTable - 1) SetL2Entry(image, i << 12, 0);
  }
  const Report leaks = Check(image.bytes);
  EXPECT_EQ(leaks.held_back.clusters, 0u);
  EXPECT_GT(leaks.totals.leaks << 12, uint64_t{64} << 20);
  SetL1Entry(image, kTables, 0);
  ExpectHeldBack(image.bytes, FindingCode::kOrphanL2Table);
  // Nor does the note that the repair leaves make it look at less.
  MemoryFile file(image.bytes);
  EXPECT_TRUE(HasFinding(Repair(file).after, FindingCode::kOrphanL2Table));
}

// Compressed clusters share host clusters, so an entry that leads to the data of another one is no
// cross-link: only refcounts tell.
TEST(LostMappings, OfCompressedDataThatAFlippedBitLeadsAwayFrom) {
  for (const uint64_t random_bytes : {300, 1500, 3900}) {
    const BuiltImage image =
        BuildImage({.cluster_bits = 12,
                    .steps = {WriteCompressed{.count = 64, .random_bytes = random_bytes}}});
    int relinked = 0;
    for (int bit = 0; bit < 20; ++bit) {
      const uint64_t guest = static_cast<uint64_t>(bit * 3) << 12;
      const uint64_t sound = GetL2Entry(image, guest);
      BuiltImage damaged = image;
      FlipBit64(damaged.bytes, image.L2EntryOffset(guest), bit);
      const bool is_found = Check(damaged.bytes).totals.corruptions != 0;
      MemoryFile file(damaged.bytes);
      Repair(file, {.discard = true});
      damaged.bytes = file.bytes();
      relinked += GetL2Entry(damaged, guest) == sound ? 1 : 0;
      if (!is_found) continue;
      const CompressedRange data = DecodeCompressed(sound, 12);
      for (uint64_t at = data.offset_bytes >> 12; at <= (data.end_bytes() - 1) >> 12; ++at) {
        EXPECT_GE(GetRefcount(damaged, at), GetRefcount(image, at)) << bit << ", " << random_bytes;
      }
      Repair(file, {.mode = RepairMode::kLeaks, .discard = true});
      EXPECT_EQ(file.bytes(), damaged.bytes);
    }
    EXPECT_GE(relinked, 6) << random_bytes;
  }
}

// A free cluster, to which one flipped bit leads, is no cross-link either.
TEST(LostMappings, OfDataThatAFlippedBitLeadsAwayFrom) {
  const BuiltImage image =
      BuildImage({.cluster_bits = 12,
                  .steps = {WriteClusters{.count = 128}, Discard{.first = 32, .count = 64}}});
  int flips = 0;
  for (int bit = 12; bit < 19; ++bit) {
    for (const uint64_t guest_cluster : {0, 7, 100}) {
      const uint64_t guest = guest_cluster << 12;
      const uint64_t meant = image.ClusterOf(EntryOffset(GetL2Entry(image, guest)));
      BuiltImage damaged = image;
      FlipBit64(damaged.bytes, image.L2EntryOffset(guest), bit);
      const uint64_t leads_to = EntryOffset(GetL2Entry(damaged, guest)) >> 12;
      if (leads_to << 12 >= image.bytes.size() || GetRefcount(image, leads_to) != 0) continue;
      ++flips;
      MemoryFile file(damaged.bytes);
      Repair(file, {.discard = true});
      damaged.bytes = file.bytes();
      EXPECT_EQ(GetRefcount(damaged, meant), 1u);
      Repair(file, {.mode = RepairMode::kLeaks, .discard = true});
      EXPECT_EQ(file.bytes(), damaged.bytes);
    }
  }
  EXPECT_GE(flips, 4);
}

// What was written since the snapshot is in a sector of the table that did not reach the disk: the
// old one leads to what the snapshot has, and the snapshot's clusters are counted once too low.
TEST(LostMappings, InASectorThatWasNotWritten) {
  const std::vector<Step> before = {WriteClusters{.count = 128}, TakeSnapshot{},
                                    WriteClusters{.first = 100, .count = 1}};
  std::vector<Step> after = before;
  after.push_back(WriteClusters{.first = 0, .count = 60});
  const BuiltImage old = BuildImage({.cluster_bits = 12, .steps = before});
  BuiltImage image = BuildImage({.cluster_bits = 12, .steps = after});
  const BuiltImage sound = image;
  for (uint64_t guest = 0; guest < uint64_t{64} << 12; guest += 1 << 12) {
    SetL2Entry(image, guest, GetL2Entry(old, guest));
  }
  MemoryFile file(image.bytes);
  Repair(file, {.discard = true});
  image.bytes = file.bytes();
  for (uint64_t guest = 0; guest < uint64_t{60} << 12; guest += 1 << 12) {
    const uint64_t cluster = image.ClusterOf(EntryOffset(GetL2Entry(sound, guest)));
    EXPECT_EQ(GetRefcount(image, cluster), 1u) << guest;
  }
}

// Two damaged entries, both one bit away from the data of the first.
TEST(LostMappings, OfCompressedDataThatTwoEntriesMayBeMeantFor) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12, .steps = {WriteCompressed{.count = 8, .random_bytes = 3900}}});
  const uint64_t first = GetL2Entry(image, 0);
  constexpr uint64_t kOther = uint64_t{5} << 12;
  SetL2Entry(image, 0, first ^ uint64_t{1} << 40);
  SetL2Entry(image, kOther, first ^ uint64_t{1} << 41);
  MemoryFile file(image.bytes);
  Repair(file);
  image.bytes = file.bytes();
  EXPECT_NE(GetL2Entry(image, 0), first);
  EXPECT_NE(GetL2Entry(image, kOther), first);
}

// One of the clusters that it maps holds small numbers. A refcount table leads to nothing else.
TEST(LostMappings, OfDataThatLooksLikeRefcounts) {
  BuiltImage image = WithTwoTables();
  for (uint64_t i = 0; i < 40; ++i) {
    const uint64_t guest = (kSecondTable + i) << 12;
    SetL2Entry(image, guest, image.At(guest).host_offset);  // without COPIED, as after a snapshot
  }
  const uint64_t first = image.At(kSecondTable << 12).host_offset;
  ZeroCluster(image, first);
  for (uint64_t i = 0; i < 40; ++i) Poke16(image.bytes, first + 2 * i, 1);
  SetL1Entry(image, 1, 0);
  ExpectHeldBack(image.bytes, FindingCode::kOrphanL2Table);
}

// The pointer to it is not all that was damaged: there is nothing to relink, but no waste either.
TEST(LostMappings, OfATableThatIsDamagedItself) {
  BuiltImage image = WithTwoTables();
  SetL2Entry(image, (kSecondTable + 7) << 12, 0x8000'0000'0001'2345);
  SetL2Entry(image, (kSecondTable + 9) << 12, 0x8000'4000'0000'0000);
  SetL1Entry(image, 1, 0);
  ExpectHeldBack(image.bytes, FindingCode::kLeakSuspicious);
}

// One bit of the pointer is wrong, and only one table fits: it is found whatever it maps.
TEST(LostMappings, AreFoundAgainOneBitAway) {
  const ImageOptions data_file = {
      .cluster_bits = 12, .data_file = DataFileOptions{}, .steps = {WriteClusters{.count = 40}}};
  const ImageOptions compressed = {.cluster_bits = 12, .steps = {WriteCompressed{.count = 40}}};
  for (const ImageOptions& options : {data_file, compressed}) {
    BuiltImage image = BuildImage(options);
    const std::vector<uint8_t> sound = image.bytes;
    FlipBit64(image.bytes, image.l1.EntryOffset(0), 40);
    MemoryFile file(image.bytes);
    Repair(file);
    EXPECT_EQ(file.bytes(), sound);
  }
}

// The first table ends at a sector, and what was written next is the other one, which is lost: no
// part of the first is missing.
TEST(LostMappings, OfAnotherTableMakeNoTornOne) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12,
       .steps = {WriteClusters{.count = 64}, WriteClusters{.first = kSecondTable, .count = 40}}});
  SetL1Entry(image, 1, 0);
  const Report report = Check(image.bytes);
  EXPECT_TRUE(HasFinding(report, FindingCode::kOrphanL2Table));
  EXPECT_FALSE(HasFinding(report, FindingCode::kL2TableTorn));
  EXPECT_THAT(report.lost_guest_ranges, IsEmpty());
}

// Nothing is an orphan: the snapshot still has it all. But once the snapshot is deleted its
// refcounts are all that keeps the disk's only copy. The disk's L1 table, an entry of it, or the
// snapshot's.
TEST(LostMappings, OfTablesThatASnapshotShares) {
  const BuiltImage sound =
      BuildImage({.cluster_bits = 12,
                  .virtual_size = uint64_t{4} << 20,
                  .steps = {WriteClusters{.count = 8},
                            WriteClusters{.first = kSecondTable, .count = 40}, TakeSnapshot{}}});
  BuiltImage l1 = sound, entry = sound, snapshot = sound;
  for (uint64_t i = 0; i < 2; ++i) {
    SetL1Entry(l1, i, 0);
    Poke64(snapshot.bytes, snapshot.snapshots[0].l1.offset + 8 * i, 0);
  }
  SetL1Entry(entry, 1, 0);
  EXPECT_TRUE(HasFinding(Check(l1.bytes), FindingCode::kL1Lost));
  for (const BuiltImage& image : {l1, entry, snapshot}) {
    ExpectHeldBack(image.bytes, FindingCode::kL1EntryLost);
    const Report before = Check(image.bytes);
    BuiltImage repaired = image;
    MemoryFile file(image.bytes);
    for (int repair = 0; repair < 2; ++repair) {
      const Report after = Repair(file, {.mode = RepairMode::kAll, .discard = true}).after;
      EXPECT_EQ(after.held_back.clusters, before.held_back.clusters);
      repaired.bytes = file.bytes();
      for (uint64_t cluster = 0; cluster < image.bytes.size() >> 12; ++cluster) {
        EXPECT_EQ(GetRefcount(repaired, cluster), GetRefcount(image, cluster));
      }
    }
  }
}

// That leaves all tables counted once more, those that the older snapshot has and those it has not.
TEST(LostMappings, AreNotWhatMakingASnapshotLeavesWhenItIsCutShort) {
  BuiltImage image = BuildImage({.cluster_bits = 12,
                                 .virtual_size = uint64_t{4} << 20,
                                 .steps = {WriteClusters{.count = 8}, TakeSnapshot{},
                                           WriteClusters{.first = kSecondTable, .count = 40}}});
  for (const uint64_t l1_index : {0, 1}) {
    const uint64_t cluster = image.ClusterOf(image.L2At(l1_index).host_offset);
    SetRefcount(image, cluster, GetRefcount(image, cluster) + 1);
  }
  const Report report = Check(image.bytes);
  EXPECT_FALSE(HasFinding(report, FindingCode::kL1EntryLost));
  EXPECT_EQ(report.held_back.clusters, 0u);
}

TEST(LostMappings, InSectorsWhoseClustersASnapshotShares) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12,
       .steps = {WriteClusters{.count = 300}, TakeSnapshot{}, WriteClusters{.count = 1}}});
  for (uint64_t i = 64; i < 128; ++i) SetL2Entry(image, i << 12, 0);
  ExpectHeldBack(image.bytes, FindingCode::kL2TableTorn);
}

// Less than half of what was zeroed held mappings, but they lead just before the next entry's.
TEST(LostMappings, InSectorsThatWereHalfFull) {
  BuiltImage image = BuildImage({.cluster_bits = 12,
                                 .steps = {WriteClusters{.first = 88, .count = 40},
                                           WriteClusters{.first = 128, .count = 20}}});
  for (uint64_t i = 88; i < 128; ++i) SetL2Entry(image, i << 12, 0);
  ExpectHeldBack(image.bytes, FindingCode::kL2TableTorn);
}

TEST(LostMappings, InSectorsThatAreZero) {
  const BuiltImage image =
      BuildImage({.virtual_size = uint64_t{1} << 30, .steps = {WriteClusters{.count = 640}}});
  struct Sectors {
    uint64_t first, count;
  };
  for (const Sectors& lost : {Sectors{0, 1}, Sectors{0, 8}, Sectors{3, 1}, Sectors{4, 4}}) {
    BuiltImage damaged = image;
    Fill(damaged.bytes, image.L2At(0).host_offset + lost.first * 512, lost.count * 512, 0);
    ExpectHeldBack(damaged.bytes, FindingCode::kL2TableTorn);
    const Report report = Check(damaged.bytes);
    ASSERT_EQ(report.lost_guest_ranges.size(), 1u);
    EXPECT_EQ(report.lost_guest_ranges[0].offset_bytes, lost.first * 64 << 16);
    EXPECT_EQ(report.lost_guest_ranges[0].length_bytes, lost.count * 64 << 16);
  }
}

TEST(LostMappings, InSectorsOfCompressedClusters) {
  for (const uint64_t random_bytes : {20000, 60000}) {
    const BuiltImage image =
        BuildImage({.virtual_size = uint64_t{1} << 30,
                    .steps = {WriteCompressed{.count = 400, .random_bytes = random_bytes}}});
    for (const uint64_t first : {0, 1, 4}) {
      BuiltImage damaged = image;
      Fill(damaged.bytes, image.L2At(0).host_offset + first * 512, 512, 0);
      ExpectHeldBack(damaged.bytes, FindingCode::kL2TableTorn);
    }
  }
}

// Refcounts of orphans above 16 made the refcount block look like none: it was made anew with
// refcounts of 1, which hid the torn table. Where so little was lost that none is seen, orphans
// that are counted so often are no waste.
TEST(LostMappings, OfManyCompressedClustersInOne) {
  for (const uint64_t random_bytes : {30, 90}) {
    const BuiltImage sound =
        BuildImage({.cluster_bits = 12,
                    .steps = {WriteCompressed{.count = 1024, .random_bytes = random_bytes}}});
    BuiltImage image = sound;
    Fill(image.bytes, image.L2At(1).host_offset, 5 * 512, 0);
    MemoryFile file(image.bytes);
    const RepairResult result = Repair(file);
    EXPECT_NE(result.before.held_back.clusters, 0u);
    EXPECT_EQ(result.after.held_back.clusters, result.before.held_back.clusters);
    BuiltImage repaired = image;
    repaired.bytes = file.bytes();
    for (const BuiltCluster& cluster : sound.l1.clusters) {
      const uint64_t at = image.ClusterOf(cluster.host_offset);
      EXPECT_EQ(GetRefcount(repaired, at), GetRefcount(sound, at));
    }
  }
}

// What a guest never wrote is no loss, wherever a crash has left something.
TEST(LostMappings, AreNotWhatWasNeverThere) {
  BuiltImage image = BuildImage({.virtual_size = uint64_t{1} << 30,
                                 .steps = {WriteClusters{.first = 64, .count = 64},
                                           WriteClusters{.first = 1024, .count = 64}}});
  for (uint64_t i = 0; i < 20; ++i) {
    const uint64_t cluster = image.ClusterOf(image.At((1024 + i) << 16).host_offset);
    SetL2Entry(image, (1024 + i) << 16, 0);
    EXPECT_EQ(GetRefcount(image, cluster), 1u);
  }
  const Report report = Check(image.bytes);
  EXPECT_EQ(report.verdict, Verdict::kLeaks);
  EXPECT_EQ(report.totals.leaks, 20u);
}

// Entries 32 to 63 are zero sectors before a cluster with orphans in front of it. But the guest's
// entry 31 is a bitmap of zeros, so the table did not begin there.
TEST(LostMappings, AreNotBetweenZerosOfSubclusters) {
  BuiltImage image = BuildImage({.cluster_bits = 16,
                                 .virtual_size = uint64_t{1} << 30,
                                 .extended_l2 = true,
                                 .steps = {WriteZeros{.first = 31}, WriteClusters{.first = 5100},
                                           WriteClusters{.first = 5000, .count = 36},
                                           WriteClusters{.first = 64, .count = 8}}});
  const auto clear = [&image](uint64_t cluster) {
    SetL2Entry(image, cluster << 16, 0);
    SetL2Bitmap(image, cluster << 16, 0);
  };
  for (uint64_t i = 4; i < 36; ++i) clear(5000 + i);
  EXPECT_FALSE(HasFinding(Check(image.bytes), FindingCode::kL2TableTorn));
  clear(31);
  EXPECT_TRUE(HasFinding(Check(image.bytes), FindingCode::kL2TableTorn));
}

// Offsets into a data file say nothing about clusters of the image.
TEST(LostMappings, AreNotBesideADataFile) {
  BuiltImage image = BuildImage({.cluster_bits = 12,
                                 .data_file = DataFileOptions{},
                                 .steps = {WriteClusters{.first = 64, .count = 8}}});
  const uint64_t used = image.ClusterOf(image.bytes.size());
  ASSERT_LT(used, 24u);
  Extend(image.bytes, 80 << 12);
  for (uint64_t cluster = 24; cluster < 64; ++cluster) SetRefcount(image, cluster, 1);
  const Report report = Check(image.bytes);
  EXPECT_EQ(report.totals.leaks, 40u);
  EXPECT_FALSE(HasFinding(report, FindingCode::kL2TableTorn));
}

// --- Tables that map nothing ---

BuiltImage WithLeaks(ImageOptions options) {
  BuiltImage image = BuildImage(options);
  for (uint64_t i = 0; i < 256; i += 2) SetL2Entry(image, i * image.geometry.cluster_size(), 0);
  return image;
}

// A guest's TRIM leaves tables of zero entries. A program that was killed leaves leaks.
TEST(LostMappings, AreNotWhatAGuestDiscarded) {
  const BuiltImage image = WithLeaks(
      {.cluster_bits = 12,
       .steps = {WriteClusters{.count = 300}, WriteClusters{.first = kSecondTable, .count = 256},
                 WriteZeros{.first = kSecondTable, .count = 256}}});
  const Report report = Check(image.bytes);
  EXPECT_EQ(report.verdict, Verdict::kLeaks);
  EXPECT_EQ(report.data, DataState::kNone);
  MemoryFile file(image.bytes);
  EXPECT_EQ(Repair(file, {.mode = RepairMode::kLeaks}).after.totals.leaks, 0u);
}

// ... but a block of refcounts of 64 bits looks just like it.
TEST(LostMappings, AreZerosThatMayBeRefcounts) {
  const BuiltImage image = WithLeaks(
      {.cluster_bits = 12,
       .refcount_order = 6,
       .steps = {WriteClusters{.count = 300}, WriteClusters{.first = kSecondTable, .count = 256},
                 WriteZeros{.first = kSecondTable, .count = 256}}});
  EXPECT_TRUE(HasFinding(Check(image.bytes), FindingCode::kL2TableLost));
}

// Behind the end of the disk there is nothing to lose.
TEST(LostMappings, AreNotBehindTheDisk) {
  BuiltImage image = WithLeaks({.cluster_bits = 12,
                                .virtual_size = uint64_t{8} << 20,
                                .steps = {WriteClusters{.count = 300},
                                          WriteClusters{.first = 3 * kSecondTable, .count = 1}}});
  PokeField(image, "size", uint64_t{6} << 20);
  ZeroCluster(image, image.L2At(3).host_offset);
  EXPECT_FALSE(HasFinding(Check(image.bytes), FindingCode::kL2TableLost));
}

// --- Pointers ---

// L1[1] was lost, and the snapshot's, the disk's or another slot has a flag that leads nowhere.
TEST(LostMappings, AFlagAloneIsNoPointer) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12,
       .virtual_size = uint64_t{8} << 20,
       .steps = {WriteClusters{.count = 8}, WriteClusters{.first = kSecondTable, .count = 40}}});
  const uint64_t table = GetL1Entry(image, 1);
  SetL1Entry(image, 1, 0);
  SetL1Entry(image, 3, uint64_t{1} << 63);
  MemoryFile file(image.bytes);
  Repair(file);
  EXPECT_NE(Peek64(file.bytes(), image.l1.EntryOffset(3)), table);
}

TEST(LostMappings, OfTheWholeDiskWhereTheL1OffsetIsMisaligned) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{.count = 8}}});
  PokeField(image, "l1_table_offset", image.l1.offset + 512);
  const Report report = Check(image.bytes);
  EXPECT_EQ(report.data, DataState::kLost);
  EXPECT_EQ(report.lost_guest_bytes, image.geometry.virtual_size_bytes);
}

// The entry leads to the live refcount block, which has few counts: no table of mappings, whose
// entries behind the end of the file were to be given up one by one.
TEST(LostMappings, ARefcountBlockIsNoL2Table) {
  BuiltImage image =
      BuildImage({.virtual_size = uint64_t{1} << 30,
                  .steps = {WriteClusters{.count = 8}, WriteClusters{.first = 8192, .count = 8}}});
  const std::vector<uint8_t> sound = image.bytes;
  SetL1Entry(image, 0, kCopiedBit | image.refcount_blocks[0]);
  const Report report = Check(image.bytes);
  EXPECT_TRUE(HasFinding(report, FindingCode::kL2TableLost));
  EXPECT_EQ(report.lost_guest_bytes, uint64_t{512} << 20);
  MemoryFile file(image.bytes);
  Repair(file);
  EXPECT_EQ(file.bytes(), sound);
}

// --- Counts ---

// Killed while it made a snapshot: everything is counted once more. No block was written over.
TEST(LostMappings, ASnapshotThatWasNotMadeIsNoGarbage) {
  BuiltImage image = BuildImage({.cluster_bits = 12, .steps = {WriteClusters{.count = 900}}});
  const std::vector<uint8_t> sound = image.bytes;
  for (const BuiltCluster& cluster : image.l1.clusters) {
    SetRefcount(image, image.ClusterOf(cluster.host_offset), 2);
    SetL2Entry(image, cluster.guest_offset, cluster.host_offset);  // no longer COPIED
  }
  const Report report = Check(image.bytes);
  EXPECT_EQ(report.verdict, Verdict::kLeaks);
  EXPECT_EQ(report.data, DataState::kNone);
  MemoryFile file(image.bytes);
  Repair(file, {.mode = RepairMode::kLeaks});
  EXPECT_EQ(file.bytes(), sound);
}

// Killed with lazy refcounts, and an L2 table was lost: what was written last has no refcount, and
// would be written over.
TEST(LostMappings, OfWhatLazyRefcountsDoNotCount) {
  BuiltImage image =
      BuildImage({.lazy_refcounts = true, .dirty = true, .steps = {WriteClusters{.count = 40}}});
  for (uint64_t i = 20; i < 40; ++i) {
    SetRefcount(image, image.ClusterOf(image.At(i << 16).host_offset), 0);
  }
  L2HasText(image);
  MemoryFile file(image.bytes);
  const RepairResult result = Repair(file);
  EXPECT_GE(result.after.held_back.clusters, 40u);
  EXPECT_THAT(Repair(file).plan.steps, IsEmpty());
}

// Without the snapshots, which cannot be read, every refcount is right once it was lowered.
TEST(LostMappings, OfSnapshotsAreNotProvenByFreeingThem) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{.count = 8}, TakeSnapshot{},
                                           WriteClusters{.first = 2, .count = 4}, TakeSnapshot{}}});
  FillWithText(image.bytes, image.snapshot_table.offset, image.snapshot_table.length);
  MemoryFile file(image.bytes);
  const RepairResult result = Repair(file, {.mode = RepairMode::kAll, .free_orphans = true});
  EXPECT_TRUE(HasFinding(result.after, FindingCode::kSnapshotTableInvalid));
}

// Reverting to a snapshot brings its VM state back, behind the end of the disk.
TEST(LostMappings, VmStateIsNoDataBehindTheDisk) {
  BuiltImage image =
      BuildImage({.cluster_bits = 12,
                  .virtual_size = uint64_t{2} << 20,
                  .extra_l1_entries = 1,
                  .steps = {WriteClusters{.count = 8}, TakeSnapshot{.vm_state_bytes = 3 * 4096}}});
  const BuiltL1Table& snapshot = image.snapshots[0].l1;
  const uint64_t table = EntryOffset(Peek64(image.bytes, snapshot.EntryOffset(1)));
  SetRefcount(image, image.ClusterOf(image.L2At(1).host_offset), 0);
  SetL1Entry(image, 1, table);
  SetRefcount(image, image.ClusterOf(table), 2);
  for (const BuiltCluster& cluster : snapshot.clusters) {
    if (cluster.guest_offset < image.geometry.virtual_size_bytes) continue;
    SetRefcount(image, image.ClusterOf(cluster.host_offset), 2);
    Poke64(image.bytes, cluster.entry_offset, cluster.host_offset);
  }
  const Report report = Check(image.bytes);
  EXPECT_EQ(report.verdict, Verdict::kClean);
  EXPECT_FALSE(HasFinding(report, FindingCode::kDataPastVirtualEnd));
}

}  // namespace
}  // namespace qcow2check::testing
