// Repairs that are cut off: killed at any write, in the middle of one, or by a power cut that loses
// any of what was not flushed. Whatever is left is no worse than what was there before, repairs to
// the same end, and can be undone; and the undo can be cut off as well.
#include <cstdint>
#include <filesystem>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cut_off_repair.h"
#include "tests/damage.h"
#include "tests/dice.h"
#include "tests/image_builder.h"
#include "tests/image_text.h"
#include "tests/repair_corpus.h"

namespace qcow2check::testing {
namespace {

// Long repairs repeat themselves: of many writes in a row only some are tried, of flushes all.
std::vector<size_t> PointsOf(const RecordedDisk& disk) {
  constexpr size_t kAllBelow = 50;
  const size_t stride = disk.events() / kAllBelow + 1;
  std::vector<size_t> points;
  for (size_t count = 0; count <= disk.events(); ++count) {
    if (count % stride == 0 || disk.IsAtFlush(count)) points.push_back(count);
  }
  return points;
}

enum class UndoFileIs { kThere, kGone };

// Repairs, and looks at what a crash leaves.
void ExpectNothingIsLost(const CrashCase& crash_case, UndoFileIs undo_file) {
  SCOPED_TRACE(crash_case.name);
  const WholeRepair repair(crash_case);
  ASSERT_TRUE(repair.result().status.ok()) << repair.result().status;
  std::set<DiskState> seen;
  for (const size_t count : PointsOf(repair.disk())) {
    Dice dice(count);
    for (DiskState& state : StatesAt(repair.disk(), count, dice)) {
      if (undo_file == UndoFileIs::kGone) state[kCrashUndo].clear();
      if (!seen.insert(state).second) continue;
      std::string wrong =
          undo_file == UndoFileIs::kGone ? repair.WorseEndWithout(state) : repair.Wrong(state);
      if (wrong.empty() && undo_file == UndoFileIs::kThere && dice.Percent(10)) {
        wrong = repair.WrongInterruptedUndo(state, dice);
      }
      ASSERT_EQ(wrong, "") << "cut off after " << count << " of " << repair.disk().events();
    }
  }
}

struct Layout {
  std::string name;
  ImageOptions options;
};
void PrintTo(const Layout& layout, std::ostream* out) { *out << layout.name; }

std::vector<Layout> Layouts() {
  return {
      {"small",
       {.cluster_bits = 9,
        .virtual_size = 128 << 10,
        .steps = {WriteClusters{.count = 20, .stride = 5}}}},
      {"snapshot",
       {.cluster_bits = 10,
        .virtual_size = 256 << 10,
        .steps = {WriteClusters{.count = 6, .stride = 7}, TakeSnapshot{},
                  WriteCompressed{.first = 1, .count = 3, .random_bytes = 300},
                  WriteClusters{.first = 7, .count = 2, .stride = 7}}}},
      {"bits1",
       {.cluster_bits = 9,
        .refcount_order = 0,
        .virtual_size = 128 << 10,
        .steps = {WriteClusters{.count = 20, .stride = 5}}}},
      {"backing",
       {.version = 2,
        .cluster_bits = 10,
        .virtual_size = 512 << 10,
        .backing = BackingOptions{},
        .steps = {WriteClusters{.count = 10, .stride = 3}}}},
      {"extended",
       {.cluster_bits = 14,
        .virtual_size = 64 << 20,
        .extended_l2 = true,
        .steps = {WriteClusters{.count = 4, .stride = 9}}}},
  };
}

class FieldCrashTest : public ::testing::TestWithParam<Layout> {
 protected:
  static void TryAll(UndoFileIs undo_file) {
    for (const FieldDamage& damage : AllFieldDamages()) {
      // Nothing is misaligned where clusters are sectors.
      if (damage.name == "entry-misaligned" && GetParam().options.cluster_bits == 9) continue;
      BuiltImage image = BuildImage(GetParam().options);
      damage.apply(image);
      ExpectNothingIsLost({.name = std::string(damage.name), .damaged = image.bytes}, undo_file);
    }
  }
};

TEST_P(FieldCrashTest, NothingIsLostWhereverARepairIsCutOff) { TryAll(UndoFileIs::kThere); }
TEST_P(FieldCrashTest, ARepairGoesOnWithoutTheUndoFile) { TryAll(UndoFileIs::kGone); }

INSTANTIATE_TEST_SUITE_P(Layouts, FieldCrashTest, ::testing::ValuesIn(Layouts()),
                         [](const auto& test) { return test.param.name; });

// Images and damage of all kinds, some for each parameter.
class RandomCrashTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  static void TryAll(UndoFileIs undo_file) {
    constexpr uint64_t kSeeds = 40;
    for (uint64_t seed = GetParam() * kSeeds; seed < (GetParam() + 1) * kSeeds; ++seed) {
      Dice dice(seed);
      const CorpusImage image = MakeCorpusImage(seed);
      CrashCase crash_case{.name = absl::StrCat("seed ", seed),
                           .damaged = DamageImage(image, dice).bytes,
                           .data_file = image.data_file};
      // Large images take long, and say no more than small ones.
      constexpr uint64_t kEnoughBytes = 256 << 10;
      if (crash_case.damaged.size() > kEnoughBytes) continue;
      crash_case.options.free_orphans = seed % 5 == 3;
      crash_case.options.discard = seed % 5 >= 3;
      ExpectNothingIsLost(crash_case, undo_file);
    }
  }
};

TEST_P(RandomCrashTest, NothingIsLostWhereverARepairIsCutOff) { TryAll(UndoFileIs::kThere); }
TEST_P(RandomCrashTest, ARepairGoesOnWithoutTheUndoFile) { TryAll(UndoFileIs::kGone); }

INSTANTIATE_TEST_SUITE_P(Seeds, RandomCrashTest, ::testing::Range<uint64_t>(0, 5));

// What once broke a property of the repair fuzzer: several damages at once, and repairs that are
// made in two parts.
class RegressionCrashTest : public ::testing::Test {
 protected:
  static void TryAll(UndoFileIs undo_file) {
    for (const auto& entry : std::filesystem::directory_iterator(
             absl::StrCat(QCOW2CHECK_SOURCE_DIR, "/corpora/regressions/repair"))) {
      const std::string name = entry.path().filename();
      // What it gives up it finds again in the same repair. Between the two the guest reads zeros,
      // as the plan says; and another repair that begins there keeps more as it is.
      if (name == "restricted-by-no-room-for-a-note.qtxt") continue;
      // The only room for new structures is inside the file, and what is left there of an
      // interrupted repair is not overwritten: a second one has none.
      if (undo_file == UndoFileIs::kGone && name == "block-made-inside-the-file.qtxt") continue;
      const absl::StatusOr<Bytes> image =
          LoadCorpusImage(absl::StrCat("regressions/repair/", name));
      ASSERT_TRUE(image.ok()) << name << ": " << image.status();
      ExpectNothingIsLost({.name = name, .damaged = *image}, undo_file);
    }
  }
};

TEST_F(RegressionCrashTest, NothingIsLostWhereverARepairIsCutOff) { TryAll(UndoFileIs::kThere); }
TEST_F(RegressionCrashTest, ARepairGoesOnWithoutTheUndoFile) { TryAll(UndoFileIs::kGone); }

}  // namespace
}  // namespace qcow2check::testing
