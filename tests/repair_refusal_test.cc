// Header fields that give every table another meaning: if one was damaged, a repair would destroy
// what is right, so there is none.
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "checker/check.h"
#include "checker/progress.h"
#include "common/image_file.h"
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

void ExpectRefused(absl::string_view field, uint64_t value, const std::string& why) {
  BuiltImage image = BuildImage({.steps = {WriteClusters{.count = 8}}});
  PokeField(image, field, value);
  MemoryFile file(image.bytes);
  const RepairResult result =
      RepairImage(file, {}, {.mode = RepairMode::kAll}, /*open_undo=*/nullptr);
  EXPECT_THAT(result.plan.refused, ::testing::HasSubstr(why));
  EXPECT_FALSE(result.changed);
  EXPECT_EQ(file.bytes(), image.bytes);
}

TEST(RepairRefusalTest, OfAnImageOfVersion3ThatSaysItIsOfVersion2) {
  ExpectRefused("version", 2, "the version field was probably damaged");
}

TEST(RepairRefusalTest, OfClustersHalfAsLargeAsTheyAre) {
  ExpectRefused("cluster_bits", 15, "the cluster size in the header is probably wrong");
}

// Of the metadata that a plan looks at, as its progress counts it, in checks.
uint64_t ChecksToPlan(const ImageFile& file, std::string& refused) {
  Progress checked, planned;
  CheckImage(file, {.threads = 1, .progress = &checked});
  refused = PlanRepair(file, {.threads = 1, .progress = &planned}, {}).plan.refused;
  return planned.bytes_read / checked.bytes_read;
}

// The L1 table is longer than the file, and there are no refcounts: new structures lie inside the
// table, and are repaired as its entries.
TEST(RepairRefusalTest, OfRepairsThatUndoEachOtherAfterSomeRounds) {
  const absl::StatusOr<SparseFile> image = ParseSparseImage(
      "size 0x1400\n"
      "0x0: 51 46 49 fb 00 00 00 03\n"
      "0x10: 00 00 00 00 00 00 00 09\n"
      "0x20: 00 00 00 00 ff ff ff fe 00 00 00 00 00 00 02 00\n"
      "0x600: 00 00 00 00 00 00 08 00\n"
      "0x848: 80 00 00 00 00 00 10 00\n");
  ASSERT_TRUE(image.ok()) << image.status();
  std::string refused;
  EXPECT_LT(ChecksToPlan(*image, refused), 300u);
  EXPECT_THAT(refused, ::testing::HasSubstr("undone by the next"));
}

}  // namespace
}  // namespace qcow2check::testing
