// The maps that count clusters, against a plain std::map.
#include "common/refcount_map.h"

#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "common/cluster_set.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qcow2check {
namespace {

using ::testing::ElementsAre;

TEST(RefcountMap, CountsLikeAPlainMap) {
  constexpr uint64_t kClusters = 3 * kPageClusters;
  std::mt19937_64 random(1);
  RefcountMap map(kClusters);
  std::map<uint64_t, uint64_t> plain;
  // Weights that make pages pass through every width.
  const std::vector<uint64_t> weights = {1, 1, 1, 2, 200, 300, 70'000, uint64_t{1} << 33};
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t cluster = random() % kClusters;
    const uint64_t weight = weights[random() % (1 + static_cast<uint64_t>(i) / 2500)];
    const bool was_free = plain[cluster] == 0;
    EXPECT_EQ(map.Add(cluster, weight), was_free);
    plain[cluster] += weight;
  }
  for (uint64_t cluster = 0; cluster < kClusters; ++cluster) {
    const auto found = plain.find(cluster);
    ASSERT_EQ(map.Get(cluster), found == plain.end() ? 0 : found->second) << cluster;
  }
}

TEST(RefcountMap, BitWordsTellOnlyWhatIsKnownAsBits) {
  RefcountMap map(2 * kPageClusters);
  uint64_t bits = 99;
  EXPECT_TRUE(map.BitWord(0, bits));
  EXPECT_EQ(bits, 0u);
  map.Add(64 + 5, 1);
  EXPECT_TRUE(map.BitWord(64, bits));
  EXPECT_EQ(bits, uint64_t{1} << 5);
  map.Add(64 + 5, 1);
  EXPECT_FALSE(map.BitWord(64, bits));
  EXPECT_TRUE(map.BitWord(kPageClusters, bits));
}

TEST(RefcountMap, CountsSaturate) {
  RefcountMap map(64);
  map.Add(3, ~uint64_t{0});
  map.Add(3, 5);
  EXPECT_EQ(map.Get(3), ~uint64_t{0});
}

TEST(RefcountMap, FarApartClustersOfAHugeFileCostTwoPages) {
  RefcountMap map(kMaxFileClusters);
  map.Add(0, 1);
  map.Add(kMaxFileClusters - 1, 1);
  EXPECT_EQ(map.Get(kMaxFileClusters - 1), 1u);
  EXPECT_EQ(map.NextPage(1), (kMaxFileClusters - 1) / kPageClusters);
  EXPECT_EQ(map.NextPage((kMaxFileClusters - 1) / kPageClusters + 1), kNoPage);
}

TEST(ClusterSet, VisitsMembersInOrder) {
  ClusterSet set(1 << 20);
  EXPECT_TRUE(set.empty());
  for (const uint64_t cluster : {700'000, 63, 64, 0}) set.Insert(cluster);
  std::vector<uint64_t> members;
  set.ForEach([&members](uint64_t cluster) { members.push_back(cluster); });
  EXPECT_THAT(members, ElementsAre(0, 63, 64, 700'000));
  EXPECT_EQ(set.Word(64), 1u);
  EXPECT_FALSE(set.Contains(1));
}

}  // namespace
}  // namespace qcow2check
