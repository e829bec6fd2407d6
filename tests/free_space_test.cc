// Where a repair puts new structures when the file cannot grow: never over what may be the only
// copy of something, though its refcount is 0 and nothing references it.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/byte_order.h"
#include "common/finding.h"
#include "common/memory_file.h"
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

// A disk that was made larger, so that its L1 table was moved to the end, and whose file was cut
// off inside the table. That counts as no reference, but the guest reads through what there is of
// it.
BuiltImage CutOffInL1Table(uint64_t room_bytes = 0) {
  BuiltImage image = BuildImage(
      {.cluster_bits = 9, .virtual_size = 8 << 20, .steps = {WriteClusters{.count = 20}}});
  const uint64_t from = Load64(&image.bytes[40]), length = uint64_t{Load32(&image.bytes[36])} * 8;
  const std::vector<uint8_t> table(&image.bytes[from], &image.bytes[from] + length);
  image.bytes.resize(image.bytes.size() + room_bytes);
  const uint64_t to = image.bytes.size();
  image.bytes.insert(image.bytes.end(), table.begin(), table.end());
  std::fill_n(&image.bytes[from], length, 'e');  // a later guest write
  for (uint64_t at = 0; at < length; at += 512) {
    SetRefcount(image, (from + at) / 512, 0);
    SetRefcount(image, (to + at) / 512, 1);
  }
  Store64(&image.bytes[40], to);
  image.bytes.resize(to + length / 2);
  return image;
}

TEST(FreeSpaceTest, AnL1TableThatIsCutOffIsNoOrphan) {
  BuiltImage image = CutOffInL1Table();
  MemoryFile file(image.bytes);
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll, .free_orphans = true, .discard = true},
                  /*open_undo=*/nullptr);
  ASSERT_TRUE(result.status.ok()) << result.status;
  ASSERT_TRUE(HasFinding(result.before, FindingCode::kL1OffsetInvalid));
  // Not even where the rest of it was: a writer would put something there, which it would lead to.
  EXPECT_EQ(file.bytes(), image.bytes);
}

void ExpectNothingIsPutThere(const BuiltImage& image) {
  MemoryFile file(image.bytes);
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll}, /*open_undo=*/nullptr);
  ASSERT_TRUE(result.status.ok()) << result.status;
  const auto from_l1 = [](const std::vector<uint8_t>& bytes) {
    return std::vector<uint8_t>(bytes.begin() + static_cast<int64_t>(Load64(&bytes[40])),
                                bytes.end());
  };
  EXPECT_EQ(from_l1(file.bytes()), from_l1(image.bytes));
}

TEST(FreeSpaceTest, NoBlockIsPutWhereAnL1TableIsCutOff) {
  BuiltImage image = CutOffInL1Table();
  RefcountTableZeroed(image);
  ExpectNothingIsPutThere(image);
}

TEST(FreeSpaceTest, RefcountsThatAreMadeAnewCountAnL1TableThatIsCutOff) {
  BuiltImage image = CutOffInL1Table(/*room_bytes=*/4096);
  RefcountBlockZeroed(image);
  RefcountTableZeroed(image);
  MemoryFile file(image.bytes);
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll}, /*open_undo=*/nullptr);
  ASSERT_TRUE(result.status.ok()) << result.status;
  image.bytes = file.bytes();
  for (uint64_t at = Load64(&image.bytes[40]); at < image.bytes.size(); at += 512) {
    EXPECT_EQ(GetRefcount(image, at / 512), 1u) << at;
  }
}

TEST(FreeSpaceTest, NoCopyIsPutWhereAnL1TableIsCutOff) {
  BuiltImage image = CutOffInL1Table();
  SetL2Entry(image, 40 * 512, GetL2Entry(image, 0));
  ExpectNothingIsPutThere(image);
}

// On a device the block that takes the place of a lost one lies inside. Then an entry of a table
// that a snapshot shares leads to its old cluster again, whose refcount must be 2.
TEST(FreeSpaceTest, ABlockMadeInsideTheFileIsThereBeforeRefcountsAreRaisedInIt) {
  constexpr uint64_t kShared = 64 * 512;  // guest offset of the second table
  BuiltImage image =
      BuildImage({.cluster_bits = 9,
                  .virtual_size = 2 * kShared,
                  .steps = {WriteClusters{.count = 20}, WriteClusters{.first = 64, .count = 20},
                            TakeSnapshot{}, WriteClusters{.count = 4}}});
  image.bytes.resize(image.bytes.size() + 4096);
  RefcountTableZeroed(image);
  SetL2Entry(image, kShared + 5 * 512, GetL2Entry(image, 10 * 512));
  const uint64_t cluster = image.ClusterOf(image.At(kShared + 5 * 512).host_offset);
  image.bytes = Repaired(image);
  EXPECT_EQ(GetRefcount(image, cluster), 2u);
}

// Refcounts that cannot be read count as 0. The flags are all that still says what is shared.
TEST(FreeSpaceTest, WithoutRoomForRefcountsNoFlagIsGivenUp) {
  BuiltImage image = BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
  for (uint64_t i = 0; i < 65536; ++i) image.bytes[image.refcount_table.offset + i] = 'x';
  MemoryFile file(image.bytes);
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll, .fixed_size = true}, /*open_undo=*/nullptr);
  EXPECT_TRUE(HasFinding(result.after, FindingCode::kCopiedWrong));
  EXPECT_EQ(file.bytes(), image.bytes);
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
