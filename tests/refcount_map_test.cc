// The maps that count clusters, against a plain std::map.
#include "common/refcount_map.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "common/cluster_set.h"
#include "common/memory_budget.h"
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

// Runs, whole pages among them, in maps of several threads that are added up.
TEST(RefcountMap, AddedUpMapsCountLikeOne) {
  constexpr uint64_t kClusters = 4 * kPageClusters;
  const std::vector<uint64_t> lengths = {1, 5, 64, 700, kPageClusters, 2 * kPageClusters};
  const std::vector<uint64_t> weights = {1, 1, 1, 30, 300};
  for (uint64_t seed = 0; seed < 40; ++seed) {
    std::mt19937_64 random(seed);
    std::map<uint64_t, uint64_t> plain, users;
    RefcountMap sum(kClusters);
    std::vector<uint64_t> in_both;
    for (int maps = 0; maps < 3; ++maps) {
      RefcountMap map(kClusters);
      std::map<uint64_t, uint64_t> counted_here;
      for (int i = 0; i < 6; ++i) {
        const uint64_t length = lengths[random() % lengths.size()];
        // Often at a page's start, so that pages become full.
        const uint64_t first =
            random() % 2 == 0 ? random() % (kClusters - length + 1) : random() % 3 * kPageClusters;
        const uint64_t count = std::min(length, kClusters - first);
        const uint64_t weight = weights[random() % (1 + seed % weights.size())];
        EXPECT_EQ(map.HasAny(first, count),
                  counted_here.lower_bound(first) != counted_here.lower_bound(first + count));
        map.AddRun(first, count, weight);
        for (uint64_t c = first; c < first + count; ++c) {
          plain[c] += weight;
          ++counted_here[c];
        }
      }
      std::vector<uint64_t> expected;
      for (const auto& [cluster, ignored] : counted_here) {
        if (users[cluster]++ != 0) expected.push_back(cluster);
      }
      in_both.clear();
      sum.Absorb(map, [&in_both](uint64_t cluster) { in_both.push_back(cluster); });
      EXPECT_EQ(in_both, expected);
      EXPECT_TRUE(map.empty());
    }
    for (uint64_t cluster = 0; cluster < kClusters; ++cluster) {
      const auto found = plain.find(cluster);
      ASSERT_EQ(sum.Get(cluster), found == plain.end() ? 0 : found->second) << cluster;
    }
  }
}

TEST(RefcountMap, AMapWithoutMemoryDropsCountsAndSaysSo) {
  MemoryBudget budget(64u << 10);
  RefcountMap map(uint64_t{1} << 30, &budget);
  for (uint64_t page = 0; page < 1000; ++page) map.Add(page * kPageClusters, 300);
  EXPECT_TRUE(budget.exceeded());
}

TEST(ClusterSet, RunsAndFullPages) {
  ClusterSet set(4 * kPageClusters);
  set.InsertRun(10, 3 * kPageClusters);
  set.Insert(4 * kPageClusters - 1);
  set.Erase(kPageClusters + 7);
  ClusterSet other(4 * kPageClusters);
  other.Insert(kPageClusters + 7);
  other.InsertRun(0, kPageClusters);
  set.Absorb(other);
  std::vector<uint64_t> expected;
  for (uint64_t i = 0; i < 3 * kPageClusters + 10; ++i) expected.push_back(i);
  expected.push_back(4 * kPageClusters - 1);
  std::vector<uint64_t> members;
  set.ForEach([&members](uint64_t cluster) { members.push_back(cluster); });
  EXPECT_EQ(members, expected);
  EXPECT_TRUE(other.empty());
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
