// Header fields that give every table another meaning: if one was damaged, a repair would destroy
// what is right, so there is none.
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "repair/repair.h"
#include "tests/damage.h"
#include "tests/image_builder.h"

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

}  // namespace
}  // namespace qcow2check::testing
