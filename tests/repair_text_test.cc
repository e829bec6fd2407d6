// The text of a repair and of its plan, on every accident from the field: what a person must be
// able to rely on.
#include "cli/repair_text.h"

#include <map>
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "cli/repair_json.h"
#include "cli/wrapped.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/image_builder.h"

namespace qcow2check::testing {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::string TextOf(const RepairOutcome& outcome, bool colour = false) {
  return RepairText(outcome, {.name = "vm.qcow2", .path = "vm.qcow2", .colour = colour});
}

RepairOutcome Planned(const ImageFile& file, const RepairOptions& options = {}) {
  RepairOutcome outcome = {.options = options, .dry_run = true};
  outcome.result = PlanRepair(file, {}, options);
  outcome.undo_file = "vm.qcow2.undo";
  outcome.command_line = "qcow2check --repair vm.qcow2";
  return outcome;
}

RepairOutcome Repaired(MemoryFile& file, const RepairOptions& options = {}) {
  RepairOutcome outcome = {.options = options};
  outcome.result = RepairImage(file, {}, options, nullptr);
  outcome.undo_file = "vm.qcow2.undo";
  return outcome;
}

void ExpectFitsATerminal(const std::string& text) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::StartsWith(line, "    qcow2check ")) {
      EXPECT_LE(line.size(), static_cast<size_t>(kTextReportColumns)) << line;
    }
    EXPECT_FALSE(absl::EndsWith(line, " ")) << line;
    for (const char c : line) EXPECT_GE(c, ' ');
  }
  EXPECT_THAT(text, Not(HasSubstr("\n\n\n")));
}

struct PlannedAndDone {
  RepairOutcome plan, done;
};

// Made once for each damage: it takes longer than all that is asked about it.
const PlannedAndDone& OutcomesOf(const FieldDamage& damage) {
  static auto& made = *new std::map<absl::string_view, PlannedAndDone>();
  const auto [row, is_new] = made.try_emplace(damage.name);
  if (is_new) {
    BuiltImage image = BuildImage(FieldImageOptions());
    damage.apply(image);
    MemoryFile file(image.bytes);
    row->second.plan = Planned(file);
    row->second.done = Repaired(file);
  }
  return row->second;
}

class FieldRepairTextTest : public ::testing::TestWithParam<FieldDamage> {
 protected:
  const RepairOutcome& plan_ = OutcomesOf(GetParam()).plan;
  const RepairOutcome& done_ = OutcomesOf(GetParam()).done;
};

INSTANTIATE_TEST_SUITE_P(All, FieldRepairTextTest,
                         ::testing::ValuesIn(AllFieldDamages().begin(), AllFieldDamages().end()),
                         [](const auto& damage) {
                           return absl::StrReplaceAll(damage.param.name, {{"-", "_"}});
                         });

TEST_P(FieldRepairTextTest, FitsATerminal) {
  ExpectFitsATerminal(TextOf(plan_));
  ExpectFitsATerminal(TextOf(done_));
  EXPECT_LE(absl::c_count(TextOf(plan_), '\n'), 80);
}

TEST_P(FieldRepairTextTest, WhatLosesDataComesFirstAndIsUnmistakable) {
  uint64_t lossy = 0;
  ForEachWrite(plan_.result.plan, [&](uint64_t, const PlannedWrite& write) {
    lossy += write.reason.safety == RepairSafety::kLossy ? 1 : 0;
  });
  const std::string text = TextOf(plan_);
  EXPECT_EQ(absl::StrContains(text, "THIS WOULD GIVE UP DATA"), lossy != 0);
  EXPECT_EQ(absl::StrContains(TextOf(done_), "THIS GAVE UP DATA"), lossy != 0);
  EXPECT_EQ(absl::StrContains(text, "would read as zeros from then on"),
            !plan_.result.plan.lost_guest_ranges.empty());
  if (lossy != 0) {
    EXPECT_THAT(text, ContainsRegex("Nothing was written\\.\n\n  THIS WOULD GIVE UP DATA"));
    EXPECT_LT(text.rfind(", lossy: "), text.find(", lossless: "));
  }
}

TEST_P(FieldRepairTextTest, HeldBackClustersAreNamed) {
  const std::string text = TextOf(plan_);
  EXPECT_EQ(absl::StrContains(text, "Held back: "), plan_.result.plan.held_back.clusters != 0);
  EXPECT_EQ(absl::StrContains(text, "--free-orphans"), plan_.result.plan.held_back.clusters != 0);
  EXPECT_EQ(absl::StrContains(TextOf(done_), "Held back: "),
            done_.result.after.held_back.clusters != 0);
}

TEST_P(FieldRepairTextTest, CommandLinesToDoItAndToTakeItBack) {
  EXPECT_EQ(absl::StrContains(TextOf(plan_), "\n    qcow2check --repair vm.qcow2\n"),
            !plan_.nothing_to_write());
  EXPECT_EQ(absl::StrContains(TextOf(done_), "\n    qcow2check undo vm.qcow2.undo vm.qcow2\n"),
            done_.result.changed);
}

TEST_P(FieldRepairTextTest, WhatWasRepairedIsCountedAsByQemuImg) {
  const RepairResult& result = done_.result;
  const bool fixed = result.leaks_fixed + result.corruptions_fixed != 0;
  EXPECT_EQ(absl::StrContains(
                TextOf(done_),
                absl::StrCat("\nThe following inconsistencies were found and repaired:\n\n    ",
                             result.leaks_fixed, " leaked clusters\n    ", result.corruptions_fixed,
                             " corruptions\n\nDouble checking the fixed ", "image now...\n")),
            fixed);
}

TEST_P(FieldRepairTextTest, ColourChangesNothingElse) {
  for (const RepairOutcome* outcome : {&plan_, &done_}) {
    const std::string colourful = TextOf(*outcome, /*colour=*/true);
    EXPECT_EQ(absl::StrReplaceAll(colourful, {{"\x1b[31m", ""}, {"\x1b[33m", ""}, {"\x1b[0m", ""}}),
              TextOf(*outcome));
  }
}

TEST_P(FieldRepairTextTest, EveryFindingSaysWhatBecomesOfIt) {
  for (const RepairedFinding& row : RepairedFindings(plan_)) {
    const Severity severity = InfoOf(row.finding.code).severity;
    if (severity != Severity::kCorruption && severity != Severity::kLeak) continue;
    EXPECT_TRUE(row.repair.status == RepairStatus::kPlanned ||
                row.repair.status == RepairStatus::kDeclined);
    EXPECT_EQ(row.repair.reason.empty(), row.repair.status == RepairStatus::kPlanned);
  }
  for (const RepairedFinding& row : RepairedFindings(done_)) {
    EXPECT_NE(row.repair.status, RepairStatus::kPlanned);
    EXPECT_NE(row.repair.status, RepairStatus::kFailed) << InfoOf(row.finding.code).name;
  }
}

// --- Single properties ---

BuiltImage FieldImage() { return BuildImage(FieldImageOptions()); }

TEST(RepairTextTest, ThereIsNothingToSayOfACleanImage) {
  MemoryFile file(FieldImage().bytes);
  EXPECT_EQ(TextOf(Planned(file)), "");
  EXPECT_EQ(TextOf(Repaired(file)), "");
}

TEST(RepairTextTest, ThreeWritesOfAKindAreShownAndTheRestCounted) {
  BuiltImage image = FieldImage();
  for (uint64_t i = 0; i < 50; ++i) {
    SetRefcount(image, image.ClusterOf(image.l1.clusters[2 * i].host_offset), 0);
  }
  const std::string text = TextOf(Planned(MemoryFile(image.bytes)));
  EXPECT_THAT(text,
              HasSubstr("\n  refcount-zero-in-use  raise-refcount, lossless: 50 writes, 100 "));
  EXPECT_THAT(text, HasSubstr("\n                        - and 47 more (all with --json)\n"));
  EXPECT_THAT(text, HasSubstr(", 00 00 -> 00 01\n"));
}

TEST(RepairTextTest, WithoutUndoFileItIsSaid) {
  BuiltImage image = FieldImage();
  SetL2Entry(image, 0, 0);
  RepairOutcome outcome = Planned(MemoryFile(image.bytes));
  outcome.undo_file.clear();
  outcome.no_undo = true;
  EXPECT_THAT(TextOf(outcome), HasSubstr("Nothing would be kept of what is overwritten"));
}

TEST(RepairTextTest, NotesComeFirst) {
  RepairOutcome outcome = Planned(MemoryFile(FieldImage().bytes));
  outcome.notes = {"it was taken back with 'a\x1b[2J'"};
  EXPECT_EQ(TextOf(outcome), "Note: it was taken back with 'a\\x1b[2J'\n");
}

TEST(RepairTextTest, ARepairThatCouldNotBeginSaysThatNothingWasChanged) {
  BuiltImage image = FieldImage();
  SetL2Entry(image, 0, 0);
  RepairOutcome outcome = Planned(MemoryFile(image.bytes));
  outcome.dry_run = false;
  outcome.result.status = absl::ResourceExhaustedError("the disk is full");
  EXPECT_THAT(TextOf(outcome), StartsWith("vm.qcow2: --repair=all could not begin. Nothing was "
                                          "changed.\n"));
  outcome.result.changed = true;
  EXPECT_THAT(TextOf(outcome),
              StartsWith("vm.qcow2: --repair=all stopped before its end. The image "
                         "is changed in part.\n"));
  EXPECT_THAT(TextOf(outcome), HasSubstr("To start the repair again:\n    qcow2check --repair"));
}

}  // namespace
}  // namespace qcow2check::testing
