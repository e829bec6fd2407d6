// An L2 table that was written over, but not to its end: entries that cannot be there by chance are
// saved in a new table, and the rest of its range is given up.
#include <cstdint>
#include <vector>

#include "common/memory_file.h"
#include "common/table_entry.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/repair.h"
#include "tests/damage.h"
#include "tests/image_builder.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kSaved = 40;  // entries in front of the text

BuiltImage HalfWrittenOver(ImageOptions options) {
  options.cluster_bits = 12;
  options.steps = {WriteClusters{.count = kSaved}, WriteClusters{.first = 300, .count = 20}};
  BuiltImage image = BuildImage(options);
  FillWithText(image.bytes, image.L2At(0).host_offset + kSaved * 8, kCluster - kSaved * 8);
  return image;
}

RepairResult Repair(MemoryFile& file) {
  RepairResult result = RepairImage(file, {}, {.mode = RepairMode::kAll}, /*open_undo=*/nullptr);
  EXPECT_TRUE(result.status.ok()) << result.status;
  return result;
}

TEST(RepairLostTableTest, WhatIsProvenIsSaved) {
  const BuiltImage image = HalfWrittenOver({});
  MemoryFile file(image.bytes);
  const RepairResult result = Repair(file);
  EXPECT_EQ(result.after.totals.corruptions, 0u);
  const uint64_t table = EntryOffset(Peek64(file.bytes(), image.l1.EntryOffset(0)));
  EXPECT_NE(table, image.L2At(0).host_offset);
  for (uint64_t i = 0; i < kSaved; ++i) {
    EXPECT_EQ(Peek64(file.bytes(), table + i * 8), GetL2Entry(image, i * kCluster)) << i;
  }
  for (uint64_t i = kSaved; i < kCluster / 8; ++i) {
    EXPECT_EQ(EntryOffset(Peek64(file.bytes(), table + i * 8)), 0u) << i;
  }
}

// What the new table does not map is given up, and said so; its clusters are kept.
TEST(RepairLostTableTest, TheRestIsNamedAndKept) {
  const BuiltImage image = HalfWrittenOver({});
  MemoryFile file(image.bytes);
  const RepairResult result = Repair(file);
  ASSERT_EQ(result.plan.lost_guest_ranges.size(), 1u);
  EXPECT_EQ(result.plan.lost_guest_ranges[0].offset_bytes, kSaved * kCluster);
  EXPECT_GE(result.after.held_back.clusters, 20u);
}

// What a snapshot shares is counted twice and referenced once, and the snapshot says where.
TEST(RepairLostTableTest, WhatASnapshotSharesIsSaved) {
  constexpr uint64_t kChanged = 4;
  BuiltImage image = BuildImage({.cluster_bits = 12,
                                 .steps = {WriteClusters{.count = kSaved}, TakeSnapshot{},
                                           WriteClusters{.count = kChanged}}});
  const uint64_t lost = image.L2At(0).host_offset;
  FillWithText(image.bytes, lost + kCluster / 2, kCluster / 2);
  MemoryFile file(image.bytes);
  Repair(file);
  const uint64_t table = EntryOffset(Peek64(file.bytes(), image.l1.EntryOffset(0)));
  EXPECT_NE(table, lost);
  for (uint64_t i = 0; i < kSaved; ++i) {
    EXPECT_EQ(Peek64(file.bytes(), table + i * 8), GetL2Entry(image, i * kCluster)) << i;
  }
}

TEST(RepairLostTableTest, CompressedClustersAreSaved) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 12, .steps = {WriteCompressed{.count = kSaved, .random_bytes = 900}}});
  const uint64_t lost = image.L2At(0).host_offset;
  FillWithText(image.bytes, lost + kCluster / 2, kCluster / 2);
  MemoryFile file(image.bytes);
  const RepairResult result = Repair(file);
  const uint64_t table = EntryOffset(Peek64(file.bytes(), image.l1.EntryOffset(0)));
  EXPECT_NE(table, lost);
  for (uint64_t i = 0; i < kSaved; ++i) {
    EXPECT_EQ(Peek64(file.bytes(), table + i * 8), GetL2Entry(image, i * kCluster)) << i;
  }
  ASSERT_EQ(result.plan.lost_guest_ranges.size(), 1u);
  EXPECT_EQ(result.plan.lost_guest_ranges[0].offset_bytes, kSaved * kCluster);
}

// Entries that read as zeros would show the backing file's data, which the guest never had there.
TEST(RepairLostTableTest, NothingIsDoneWhereTheBackingFileWouldShow) {
  const BuiltImage image = HalfWrittenOver({.version = 2, .backing = BackingOptions{}});
  MemoryFile file(image.bytes);
  const RepairResult result = Repair(file);
  EXPECT_EQ(EntryOffset(Peek64(file.bytes(), image.l1.EntryOffset(0))), image.L2At(0).host_offset);
  EXPECT_THAT(result.repairs, ::testing::Contains(::testing::Field(
                                  &FindingRepair::reason, ::testing::HasSubstr("version 2"))));
}

}  // namespace
}  // namespace qcow2check::testing
