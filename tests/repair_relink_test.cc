// Damaged pointers that one flipped bit explains, and such that two explanations fit.
#include <bit>
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checker/check.h"
#include "cli/repair_outcome.h"
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

constexpr uint64_t kCluster = 4096;

// 17 clusters of data, written from the last to the first: no neighbour says where one lies. One
// of them is at 8, another at 16, and 24, one flipped bit away from both, is behind the end.
struct TwoCandidates {
  TwoCandidates() {
    ImageOptions options = {.cluster_bits = 12};
    for (uint64_t i = 17; i-- > 0;) options.steps.push_back(WriteClusters{.first = i});
    image = BuildImage(options);
    for (const BuiltCluster& cluster : image.l1.clusters) {
      if (cluster.host_offset == 8 * kCluster) at_8 = cluster.guest_offset;
      if (cluster.host_offset == 16 * kCluster) at_16 = cluster.guest_offset;
    }
    SetL2Entry(image, at_8, kCopiedBit | 24 * kCluster);
  }
  BuiltImage image;
  uint64_t at_8 = 0;
  uint64_t at_16 = 0;
};

// The L2 entry of a guest cluster after the repair.
uint64_t RepairedEntry(const BuiltImage& image, uint64_t guest_offset) {
  MemoryFile file(image.bytes);
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll}, /*open_undo=*/nullptr);
  EXPECT_TRUE(result.status.ok()) << result.status;
  return Peek64(file.bytes(), image.L2EntryOffset(guest_offset));
}

TEST(RepairRelinkTest, TheOnlyClusterOneBitAwayIsTaken) {
  const TwoCandidates disk;
  EXPECT_EQ(RepairedEntry(disk.image, disk.at_8), kCopiedBit | 8 * kCluster);
}

TEST(RepairRelinkTest, OfTwoNoneIsTaken) {
  TwoCandidates disk;
  SetL2Entry(disk.image, disk.at_16, 0);
  EXPECT_EQ(EntryOffset(RepairedEntry(disk.image, disk.at_8)), 0);
}

// The cluster that it leads to belongs to somebody else, and holds no compressed data.
TEST(RepairRelinkTest, ACompressedClusterOneBitAwayIsTaken) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12,
       .steps = {WriteClusters{.count = 64}, WriteCompressed{.first = 64, .random_bytes = 900}}});
  const uint64_t sound = GetL2Entry(image, 64 * kCluster);
  FlipBit64(image.bytes, image.L2EntryOffset(64 * kCluster), 16);
  ASSERT_NE(GetL2Entry(image, 64 * kCluster), sound);
  EXPECT_EQ(RepairedEntry(image, 64 * kCluster), sound);
}

// The offset was a single bit, which flipped: the COPIED flag is all that is left of the entry, and
// the cluster was freed as waste.
TEST(RepairRelinkTest, ACopiedFlagAloneIsAPointer) {
  ImageOptions options = {.cluster_bits = 12};
  for (uint64_t i = 20; i-- > 0;) options.steps.push_back(WriteClusters{.first = i});
  const BuiltImage sound = BuildImage(options);
  BuiltImage image = sound;
  std::vector<uint64_t> guests;
  for (const BuiltCluster& cluster : sound.l1.clusters) {
    if (std::has_single_bit(cluster.host_offset)) guests.push_back(cluster.guest_offset);
  }
  ASSERT_GE(guests.size(), 2u);
  SetL2Entry(image, guests[0], kCopiedBit);
  EXPECT_EQ(Repair(image.bytes).bytes, sound.bytes);
  // Two of them may each have led to the one or the other.
  SetL2Entry(image, guests[1], kCopiedBit);
  EXPECT_EQ(Repair(image.bytes).result.after.held_back.clusters, 2u);
}

BuiltImage WithSharedClusters() {
  return BuildImage({.cluster_bits = 12,
                     .steps = {WriteClusters{.count = 16}, TakeSnapshot{.name = "s"},
                               WriteClusters{.first = 20}}});
}

// The disk still has the cluster, whose refcount was lowered: its next write went to the only copy
// that the snapshot had. And the other way round.
TEST(RepairRelinkTest, AClusterThatAnotherTableSharesIsTaken) {
  const BuiltImage sound = WithSharedClusters();
  const uint64_t of_disk = sound.L2EntryOffset(5 << 12);
  const uint64_t of_snapshot = sound.snapshots[0].l1.clusters[5].entry_offset;
  const uint64_t on_metadata = 13;  // the bits that lead to metadata, or to other data, too
  for (const uint64_t place : {of_disk, of_snapshot}) {
    for (int bit = on_metadata; bit < 56; ++bit) {
      BuiltImage image = sound;
      FlipBit64(image.bytes, place, bit);
      if (EntryOffset(Peek64(image.bytes, place)) == 0) continue;
      const Report before = CheckImage(MemoryFile(image.bytes), {});
      const RepairedImage repaired = Repair(image.bytes);
      SCOPED_TRACE(absl::StrCat("place ", place, " bit ", bit));
      if (EntryOffset(Peek64(image.bytes, place)) >= image.bytes.size() ||
          HasFinding(before, FindingCode::kDataOnMetadata) ||
          HasFinding(before, FindingCode::kCrossLinkedData)) {
        EXPECT_EQ(repaired.bytes, sound.bytes);
      } else {
        EXPECT_NE(repaired.result.after.held_back.clusters, 0u);
      }
    }
  }
}

// A refcount behind the end says that the file was cut off: the entry may have led there, and what
// the snapshot's has is one reference short for another table that is gone.
TEST(RepairRelinkTest, NoSharedClusterIsTakenForOneBehindTheEnd) {
  const BuiltImage sound = WithSharedClusters();
  BuiltImage image = sound;
  const uint64_t guest = 5 << 12;
  FlipBit64(image.bytes, image.L2EntryOffset(guest), 21);
  ASSERT_GT(EntryOffset(GetL2Entry(image, guest)), image.bytes.size());
  SetRefcount(image, image.ClusterOf(EntryOffset(GetL2Entry(image, guest))), 1);
  BuiltImage repaired = image;
  repaired.bytes = Repair(image.bytes).bytes;
  EXPECT_EQ(EntryOffset(GetL2Entry(repaired, guest)), 0u);
  const uint64_t shared = image.ClusterOf(sound.At(guest).host_offset);
  EXPECT_EQ(GetRefcount(repaired, shared), 2u);
}

// Nothing proves where it led, but the cluster keeps its refcount: QEMU writes to a copy.
TEST(RepairRelinkTest, WhatMayBeSharedKeepsItsRefcount) {
  BuiltImage image = WithSharedClusters();
  const BuiltCluster& shared = image.snapshots[0].l1.clusters[5];
  Poke64(image.bytes, shared.entry_offset, 0x123456789000);
  BuiltImage repaired = image;
  for (int repair = 0; repair < 2; ++repair) {
    const RepairedImage result = Repair(repaired.bytes);
    EXPECT_EQ(LosesData(result.result.plan), repair == 0);
    EXPECT_EQ(result.result.after.verdict, Verdict::kLeaks);
    EXPECT_EQ(result.result.after.held_back.clusters, 1u);
    repaired.bytes = result.bytes;
    EXPECT_EQ(GetRefcount(repaired, image.ClusterOf(shared.host_offset)), 2u);
  }
  EXPECT_EQ(Repair(repaired.bytes, {.free_orphans = true}).result.after.verdict, Verdict::kClean);
}

// The refcount table moved away, and the guest's entry that led to it by mistake was called right.
TEST(RepairRelinkTest, DataOnTheRefcountTableIsAmbiguous) {
  BuiltImage image = WithSharedClusters();
  SetL2Entry(image, 5 << 12, Peek64(image.bytes, 48));
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_TRUE(CopiesSharedData(repaired.result.plan));
  EXPECT_EQ(repaired.result.after.held_back.clusters, 1u);
}

}  // namespace
}  // namespace qcow2check::testing
