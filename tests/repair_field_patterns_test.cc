// The repair of damage as it was seen in the field, by name (tests/damage.h), on one base image:
// 512 data clusters that all differ, one half under L1 entry 0 and one half under entry 2. As in
// field_patterns_test.cc, but with clusters of 4 KiB, so that an image is 2 MiB.
//
// For each: what the guest reads afterwards of these 512 (what can be proven is all there), that no
// data cluster that was in the file is gone, that `leaks` keeps its hands off, that a second repair
// has nothing to do and that undo gives back every byte.
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "checker/report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/repair_corpus.h"
#include "tests/repair_promises.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kAll = 512;
constexpr uint64_t kHalf = 256;

ImageOptions Options() {
  return {.cluster_bits = 12,
          .virtual_size = 8 << 20,
          .steps = {WriteClusters{.first = 0, .count = kHalf, .stride = 2},
                    WriteClusters{.first = 2 * 512, .count = kHalf, .stride = 2}}};
}
const BuiltImage& Base() {
  static const auto* const base = new BuiltImage(BuildImage(Options()));
  return *base;
}
const CorpusImage& SoundImage() {
  static const auto* const sound = new CorpusImage(CorpusImageOf("field image", Options(), Base()));
  return *sound;
}

struct Pattern {
  const char* name;
  uint64_t readable_before;  // of the 512 clusters
  uint64_t readable_after;
  Verdict verdict_after;
  uint64_t held_back = 0;  // clusters
};

// What is proven is relinked; what is not is kept. Why less than all can be read:
const Pattern kPatterns[] = {
    // Nothing says which of the four L1 entries an L2 table belongs to.
    {"l1-zeroed", 0, 0, Verdict::kCorrupt, 514},
    // Nothing says which guest cluster a data cluster belongs to. A table of zeros may also be one
    // that maps nothing: it stays.
    {"l2-zeroed", kHalf, kHalf, Verdict::kCorrupt, 256},
    {"l2-has-refcount-block", kHalf, kHalf, Verdict::kLeaks, 257},
    {"l2-has-text", kHalf, kHalf, Verdict::kLeaks, 257},
    {"header-text", 0, 0, Verdict::kCorrupt},
    {"header-zeroed-4k", 0, 0, Verdict::kCorrupt},
    // The only orphan is what the second entry pointed to.
    {"two-guest-one-host", kAll - 1, kAll, Verdict::kClean},
    {"data-entry-is-live-l2", kAll - 1, kAll, Verdict::kClean},
    {"data-entry-is-refcount-block", kAll - 1, kAll, Verdict::kClean},
    {"refcount-block-zeroed", kAll, kAll, Verdict::kClean},
    {"refcount-table-zeroed", kAll, kAll, Verdict::kClean},
    {"live-l2-refcount-zero", kAll, kAll, Verdict::kClean},
    // The data is not in the file any more.
    {"truncated-tail", kAll - 64, kAll - 64, Verdict::kClean},
    {"entry-one-past-end", kAll - 1, kAll, Verdict::kClean},
    {"entry-misaligned", kAll - 1, kAll, Verdict::kClean},
    // Looks like a cluster that the guest zeroed.
    {"data-cluster-zeroed", kAll - 1, kAll - 1, Verdict::kClean},
    {"copied-flags-cleared-in-l1", kAll, kAll, Verdict::kClean},
    {"two-l1-same-l2", kAll, kAll, Verdict::kClean},
    {"torn-l2-second-half-zero", kAll - 128, kAll - 128, Verdict::kCorrupt, 128},
    {"garbage-refcount-block", kAll, kAll, Verdict::kClean},
    {"refcount-table-to-data", kAll, kAll, Verdict::kClean},
    // The cluster of the table itself is kept.
    {"snapshot-table-garbage", kAll, kAll, Verdict::kCorrupt, 1},
    {"l1-offset-wrong", 0, kAll, Verdict::kClean},
    {"virtual-size-grown", kAll, kAll, Verdict::kClean},
    {"lazy-refcounts-stale", kAll, kAll, Verdict::kClean},
};

std::vector<uint8_t> DamagedImage(absl::string_view name) {
  BuiltImage image = Base();
  for (const FieldDamage& damage : AllFieldDamages()) {
    if (damage.name == name) damage.apply(image);
  }
  return std::move(image.bytes);
}

uint64_t ReadableIn(const std::vector<uint8_t>& bytes) {
  const CorpusImage& sound = SoundImage();
  const uint64_t end = sound.places.geometry.virtual_size_bytes;
  const GuestView was = ReadDisk(sound.View(), end);
  const GuestView now = ReadDisk({bytes, {}}, end);
  uint64_t readable = 0;
  for (const auto& [offset, unit] : was.units) readable += now.At(offset) == unit ? 1 : 0;
  return readable;
}

void PrintTo(const Pattern& pattern, std::ostream* out) { *out << pattern.name; }

class RepairFieldPattern : public ::testing::TestWithParam<Pattern> {};

TEST_P(RepairFieldPattern, All) {
  const std::vector<uint8_t> damaged = DamagedImage(GetParam().name);
  ASSERT_EQ(ReadableIn(damaged), GetParam().readable_before);
  const RepairOutcome outcome = TryRepair(SoundImage(), damaged);
  EXPECT_EQ(outcome.broken_promises, "");
  EXPECT_EQ(ReadableIn(outcome.repaired.bytes), GetParam().readable_after);
  const Report& after = outcome.repaired.result.after;
  EXPECT_EQ(NameOf(after.verdict), NameOf(GetParam().verdict_after));
  EXPECT_EQ(after.held_back.clusters, GetParam().held_back);
  if (outcome.repaired.bytes == damaged) return;
  const KeptData kept = DataKept(SoundImage(), damaged, outcome.repaired.bytes);
  EXPECT_EQ(kept.after, kept.before) << "of the data clusters that were in the file";
}

// The mode that operators let run on its own. It has nothing to free in any of these images.
TEST_P(RepairFieldPattern, Leaks) {
  const std::vector<uint8_t> damaged = DamagedImage(GetParam().name);
  const RepairedImage repaired = Repair(damaged, {.mode = RepairMode::kLeaks});
  EXPECT_TRUE(repaired.bytes == damaged);
  EXPECT_TRUE(repaired.undo_log.empty());
}

std::string TestName(const ::testing::TestParamInfo<Pattern>& pattern) {
  std::string name = pattern.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Patterns, RepairFieldPattern, ::testing::ValuesIn(kPatterns), TestName);

TEST(RepairFieldPatterns, AreAllThatAreKnown) {
  std::vector<absl::string_view> tested, known;
  for (const Pattern& pattern : kPatterns) tested.push_back(pattern.name);
  for (const FieldDamage& damage : AllFieldDamages()) known.push_back(damage.name);
  EXPECT_EQ(tested, known);
}

}  // namespace
}  // namespace qcow2check::testing
