// Where a repair puts new structures when the file cannot grow: never over what may be the only
// copy of something, though its refcount is 0 and nothing references it.
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/finding.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/repair.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/image_text.h"
#include "tests/sparse_file.h"

namespace qcow2check::testing {
namespace {

using ::testing::Contains;
using ::testing::Field;

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kL2Reach = 512 * kCluster;
constexpr uint64_t kFreed = 20 * kCluster;  // guest offset of what the guest no longer has

// Two guest ranges are on one cluster, so one of them needs a new one. The only free cluster in the
// file still holds what was there before it was freed.
BuiltImage FullDisk() {
  BuiltImage image =
      BuildImage({.cluster_bits = 12,
                  .virtual_size = 2 * kL2Reach,
                  .steps = {WriteClusters{.count = 1}, WriteClusters{.first = kFreed / kCluster},
                            WriteClusters{.first = kL2Reach / kCluster, .count = 4}}});
  SetRefcount(image, image.ClusterOf(image.At(kFreed).host_offset), 0);
  SetL2Entry(image, kFreed, 0);
  SetL2Entry(image, kCluster, GetL2Entry(image, 0));
  return image;
}

std::vector<uint8_t> ClusterAt(const std::vector<uint8_t>& bytes, uint64_t host_offset) {
  const auto begin = bytes.begin() + static_cast<int64_t>(host_offset);
  return {begin, begin + kCluster};
}

std::vector<uint8_t> FreedCluster(const BuiltImage& image, const std::vector<uint8_t>& bytes) {
  return ClusterAt(bytes, image.At(kFreed).host_offset);
}

std::vector<uint8_t> Repaired(const BuiltImage& image) {
  MemoryFile file(image.bytes);
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll, .fixed_size = true}, /*open_undo=*/nullptr);
  EXPECT_TRUE(result.status.ok()) << result.status;
  return file.bytes();
}

TEST(FreeSpaceTest, AClusterWithContentIsLeftAloneWhereSomethingWasLost) {
  BuiltImage image = FullDisk();
  SetL1Entry(image, 1, 0);
  EXPECT_EQ(FreedCluster(image, Repaired(image)), FreedCluster(image, image.bytes));
}

TEST(FreeSpaceTest, AClusterOfZerosIsTaken) {
  BuiltImage image = FullDisk();
  SetL1Entry(image, 1, 0);
  ZeroCluster(image, image.At(kFreed).host_offset);
  EXPECT_EQ(FreedCluster(image, Repaired(image)), PatternOf(0, 1, kCluster));
}

// One slot of the L1 table leads to the table of another, and there is room for a table and the
// first of two clusters that it maps.
TEST(FreeSpaceTest, WithoutRoomForAllCopiesOfATableNoneIsMade) {
  BuiltImage image =
      BuildImage({.cluster_bits = 12,
                  .virtual_size = 2 * kL2Reach,
                  .steps = {WriteClusters{.count = 2}, WriteClusters{.first = 512}}});
  SetL1Entry(image, 1, image.L2At(0).host_offset);
  for (const uint64_t freed : {image.At(kL2Reach).host_offset, image.L2At(1).host_offset}) {
    SetRefcount(image, image.ClusterOf(freed), 0);
    ZeroCluster(image, freed);
  }
  image.bytes = Repaired(image);
  for (const uint64_t freed : {image.At(kL2Reach).host_offset, image.L2At(1).host_offset}) {
    EXPECT_TRUE(ClusterAt(image.bytes, freed) == std::vector<uint8_t>(kCluster)) << freed;
  }
}

// Its refcount cannot be lowered: the block is none that anything is written to.
TEST(FreeSpaceTest, AnOrphanThatIsNotFreedIsNotDiscarded) {
  const absl::StatusOr<SparseFile> image = ParseSparseImage(
      "size 0x841\n"
      "0x0: 51 46 49 fb 00 00 00 03\n"
      "0x10: 00 00 00 00 00 00 00 09 00 00 00 00 00 00 26 00\n"
      "0x20: 00 00 00 00 00 00 00 01 00 00 00 00 00 00 06 00\n"
      "0x30: 00 00 00 00 00 00 02 00 00 00 00 01\n"
      "0x60: 00 00 00 06 00 00 00 70\n"
      "0x200: 00 00 00 00 00 00 04 00\n"
      "0x400: 00 00 00 00 00 00 01 00 * 60\n"
      "0x800: 01 * 65\n");
  ASSERT_TRUE(image.ok()) << image.status();
  SparseFile file = *image;
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll, .discard = true, .fixed_size = true},
                  /*open_undo=*/nullptr);
  ASSERT_TRUE(result.status.ok()) << result.status;
  ASSERT_THAT(result.after.findings, Contains(Field(&Finding::code, FindingCode::kLeakedCluster)));
  EXPECT_EQ(file.Bytes(), image->Bytes());
}

}  // namespace
}  // namespace qcow2check::testing
