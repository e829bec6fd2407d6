// Over 2,000 images of every kind, damaged at random, and the repair of each: every promise is kept
// (tests/repair_promises.h), and most images are clean afterwards.
//
// A failure prints the seed and the damage; QCOW2CHECK_SEEDS=FIRST:COUNT tries those seeds alone.
#include "tests/repair_corpus.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "gtest/gtest.h"
#include "tests/repair_promises.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kShards = 8;
constexpr uint64_t kSeedsPerShard = 30;
constexpr uint64_t kDamagedPerSeed = 10;
constexpr int kMostFailuresShown = 5;

struct Seeds {
  uint64_t first = 0;
  uint64_t end = 0;
};

Seeds SeedsOfShard(uint64_t shard) {
  const char* wanted = std::getenv("QCOW2CHECK_SEEDS");
  unsigned long long first = 0, count = 0;
  if (wanted != nullptr && std::sscanf(wanted, "%llu:%llu", &first, &count) == 2) {
    return shard == 0 ? Seeds{first, first + count} : Seeds{};
  }
  return {shard * kSeedsPerShard, (shard + 1) * kSeedsPerShard};
}

class RepairCorpus : public ::testing::TestWithParam<uint64_t> {};

TEST_P(RepairCorpus, EveryPromiseIsKept) {
  int failures = 0;
  uint64_t images = 0, sound = 0, clean = 0, held_back = 0, refused = 0;
  ViewChanges disk;
  const Seeds seeds = SeedsOfShard(GetParam());
  for (uint64_t seed = seeds.first; seed < seeds.end && failures < kMostFailuresShown; ++seed) {
    const CorpusImage image = MakeCorpusImage(seed);
    Dice dice(seed);
    for (uint64_t i = 0; i < kDamagedPerSeed && failures < kMostFailuresShown; ++i) {
      const DamagedImage damaged = DamageImage(image, dice);
      const RepairOutcome outcome = TryRepair(image, damaged.bytes);
      const RepairResult& result = outcome.repaired.result;
      ++images;
      if (result.before.verdict == Verdict::kClean) ++sound;
      if (result.after.verdict == Verdict::kClean) ++clean;
      if (result.after.verdict == Verdict::kLeaks) ++held_back;
      if (!result.plan.refused.empty()) ++refused;
      disk.units += outcome.disk.units;
      disk.readable += outcome.disk.readable;
      disk.regained += outcome.disk.regained;
      disk.lost += outcome.disk.lost;
      if (outcome.broken_promises.empty()) continue;
      ++failures;
      ADD_FAILURE() << image.name << ", image " << i << "\n"
                    << damaged.damage << "\n"
                    << outcome.broken_promises;
    }
  }
  std::printf(
      "%d images, %d of them with no damage that a check sees: afterwards %d are clean, %d "
      "keep leaks, %d were refused. Of %d guest units %d read as before the damage, %d of "
      "them thanks to the repair; %d are listed as lost.\n",
      static_cast<int>(images), static_cast<int>(sound), static_cast<int>(clean),
      static_cast<int>(held_back), static_cast<int>(refused), static_cast<int>(disk.units),
      static_cast<int>(disk.readable), static_cast<int>(disk.regained),
      static_cast<int>(disk.lost));
}

INSTANTIATE_TEST_SUITE_P(Shards, RepairCorpus, ::testing::Range(uint64_t{0}, kShards));

}  // namespace
}  // namespace qcow2check::testing
