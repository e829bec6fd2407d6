// Orphans that a repair has kept, and the note that says so: what a guest does afterwards, and what
// the next check and the next repair make of it.
#include <cstdint>
#include <vector>

#include "checker/check.h"
#include "common/header_extension.h"
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

// The disk's second L2 table is the one that is lost.
constexpr uint64_t kSecondTable = 512;

BuiltImage WithTwoTables(uint64_t lost_clusters = 40) {
  return BuildImage({.cluster_bits = 12,
                     .steps = {WriteClusters{.count = 8},
                               WriteClusters{.first = kSecondTable, .count = lost_clusters}}});
}

// The orphans that an earlier repair has kept are no sign of another loss.
TEST(KeptOrphans, TellOfNoOtherLoss) {
  BuiltImage image = BuildImage(
      {.version = 2,
       .cluster_bits = 12,
       .steps = {WriteClusters{.count = 300}, WriteClusters{.first = kSecondTable, .count = 1}}});
  L2HasText(image);
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_EQ(repaired.result.after.verdict, Verdict::kLeaks);
  // The guest discards its only cluster in the second table.
  BuiltImage used = image;
  used.bytes = repaired.bytes;
  const uint64_t cluster = image.ClusterOf(image.At(kSecondTable << 12).host_offset);
  SetL2Entry(used, kSecondTable << 12, 0);
  SetRefcount(used, cluster, 0);
  const Report report = CheckImage(MemoryFile(used.bytes), {});
  EXPECT_EQ(report.verdict, Verdict::kLeaks);
  EXPECT_FALSE(HasFinding(report, FindingCode::kL2TableLost));
}

// A guest that goes on after the repair, and writes where the lost table is, ends all that speaks
// for what it mapped, but not the note.
TEST(KeptOrphans, StayWhenTheGuestGoesOn) {
  for (const uint64_t lost_clusters : {40, 400}) {
    BuiltImage image = WithTwoTables(lost_clusters);
    ZeroCluster(image, image.L2At(1).host_offset);
    const RepairedImage repaired = Repair(image.bytes);
    EXPECT_TRUE(HasFinding(repaired.result.after, FindingCode::kL2TableLost));
    EXPECT_TRUE(HasFinding(repaired.result.after, FindingCode::kKeptByRepair));
    BuiltImage used = image;
    used.bytes = repaired.bytes;
    const uint64_t cluster = image.ClusterOf(image.At(kSecondTable << 12).host_offset);
    SetL2Entry(used, kSecondTable << 12, kCopiedBit | cluster << 12);
    const RepairedImage later = Repair(used.bytes, {.mode = RepairMode::kLeaks, .discard = true});
    EXPECT_EQ(later.result.before.held_back.clusters, lost_clusters - 1);
    EXPECT_EQ(later.bytes, used.bytes);
  }
}

// Nothing was given up for the note that says so: a lost table is told of with it as without.
TEST(KeptOrphans, HideNothingIfNothingWasGivenUp) {
  BuiltImage image = WithTwoTables();
  ZeroCluster(image, image.L2At(1).host_offset);
  const RepairedImage repaired = Repair(image.bytes);
  const Report &before = repaired.result.before, &after = repaired.result.after;
  EXPECT_EQ(after.totals.corruptions, before.totals.corruptions);
  EXPECT_EQ(after.data, before.data);
  EXPECT_EQ(Repair(repaired.bytes).bytes, repaired.bytes);
}

// What a later repair gives up is in the same note.
TEST(KeptOrphans, HaveOneNote) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12,
       .virtual_size = uint64_t{6} << 20,
       .steps = {WriteClusters{.count = 40}, WriteClusters{.first = kSecondTable, .count = 40},
                 WriteClusters{.first = 2 * kSecondTable, .count = 40}}});
  ZeroCluster(image, image.L2At(1).host_offset);
  image.bytes = Repair(image.bytes).bytes;
  SetL2Entry(image, 0, kCopiedBit | uint64_t{1} << 40);
  SetL2Entry(image, 4096, kCopiedBit | uint64_t{1} << 41);
  const RepairResult result = Repair(image.bytes).result;
  EXPECT_FALSE(result.plan.lost_guest_ranges.empty());
  int notes = 0;
  for (size_t i = 0; i < result.repairs.size(); ++i) {
    if (result.before.findings[i].code != FindingCode::kKeptByRepair) continue;
    ++notes;
    EXPECT_EQ(result.repairs[i].status, RepairStatus::kDone);
  }
  EXPECT_EQ(notes, 1);
}

// The note goes behind the bitmaps' extension. Where its length was damaged, the note was put where
// that length led, to be found no more once the length was right, or over the extension itself.
TEST(KeptOrphans, HaveTheirNoteBehindAnExtensionWhoseLengthWasDamaged) {
  const BuiltImage sound = BuildImage(
      {.cluster_bits = 12, .steps = {WriteClusters{.count = 8}}, .bitmaps = {{.name = "backup"}}});
  const uint64_t extension = sound.Extension(kExtensionBitmaps).offset;
  for (const int bit : {0, 1, 2, 3, 4, 5, 16}) {
    SCOPED_TRACE(bit);
    BuiltImage image = sound;
    SetL2Entry(image, 0, kCopiedBit | uint64_t{1} << 40);
    SetL2Entry(image, 4096, kCopiedBit | uint64_t{1} << 41);
    Poke32(image.bytes, extension + 4, kBitmapsExtensionBytes ^ (uint32_t{1} << bit));
    const RepairedImage repaired = Repair(image.bytes);
    const Report& after = repaired.result.after;
    EXPECT_TRUE(HasFinding(repaired.result.before, FindingCode::kBitmapExtensionInvalid));
    EXPECT_EQ(after.verdict, Verdict::kLeaks);
    EXPECT_EQ(after.image.bitmaps, 1u);
    EXPECT_TRUE(HasFinding(after, FindingCode::kKeptByRepair));
    EXPECT_EQ(after.held_back.clusters, 2u);
    EXPECT_EQ(Repair(repaired.bytes).bytes, repaired.bytes);
  }
}

// The note pushes the backing file's name away. The dirty bit, which lies between the name's field
// and the note, is cleared last: a note planned after that took it for cleared, and no repair could
// begin.
TEST(KeptOrphans, HaveTheirNoteInAnOverlayThatIsDirty) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12,
       .dirty = true,
       .backing = BackingOptions{},
       .steps = {WriteClusters{.count = 8}, WriteClusters{.first = kSecondTable, .count = 1}}});
  SetL2Entry(image, kSecondTable << 12, 0);
  const RepairedImage repaired = Repair(image.bytes);
  const Report& after = repaired.result.after;
  EXPECT_TRUE(repaired.result.status.ok()) << repaired.result.status;
  EXPECT_EQ(after.verdict, Verdict::kLeaks);
  EXPECT_FALSE(HasFinding(after, FindingCode::kDirtyBit));
  EXPECT_TRUE(HasFinding(after, FindingCode::kKeptByRepair));
  EXPECT_EQ(after.held_back.clusters, 1u);
  EXPECT_EQ(after.image.backing_name, "base.qcow2");
  EXPECT_TRUE(Undo(repaired) == image.bytes);
}

// The refcount block looks like none, and with it goes the only sign that the file was cut off: the
// next repair took the lost table one bit away for what the pointer behind the end meant.
TEST(KeptOrphans, AreNotWhatWasBehindTheEnd) {
  BuiltImage image = WithTwoTables();
  const uint64_t behind_end = image.L2At(1).host_offset | 0x100000;
  ASSERT_GT(behind_end, image.bytes.size());
  SetL1Entry(image, 0, kCopiedBit | behind_end);
  SetL1Entry(image, 1, 0);
  SetRefcount(image, image.ClusterOf(behind_end), 1);
  for (const BuiltCluster& cluster : image.l1.clusters) {
    SetRefcount(image, image.ClusterOf(cluster.host_offset), 20);
  }
  SetRefcount(image, 0, 0);
  SetRefcount(image, image.ClusterOf(image.l1.offset), 0);
  const RepairedImage repaired = Repair(image.bytes);
  EXPECT_TRUE(HasFinding(repaired.result.before, FindingCode::kFileTruncated));
  EXPECT_FALSE(HasFinding(repaired.result.after, FindingCode::kFileTruncated));
  EXPECT_EQ(EntryOffset(Peek64(repaired.bytes, image.l1.EntryOffset(0))), behind_end);
  EXPECT_EQ(Repair(repaired.bytes).bytes, repaired.bytes);
}

}  // namespace
}  // namespace qcow2check::testing
