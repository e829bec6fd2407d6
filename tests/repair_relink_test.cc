// Damaged pointers that one flipped bit explains, and such that two explanations fit.
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

}  // namespace
}  // namespace qcow2check::testing
