// The text report: what a person must be able to rely on when reading it, on every kind of damage.
#include "cli/text_report.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "checker/check.h"
#include "cli/printable.h"
#include "cli/shell_command.h"
#include "cli/wrapped.h"
#include "common/memory_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/repair_promises.h"

namespace qcow2check::testing {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

Report Check(const std::vector<uint8_t>& bytes, const CheckOptions& options = {}) {
  return CheckImage(MemoryFile(bytes), options);
}

std::string TextOf(const Report& report, const TextOptions& options = {}) {
  return TextReport("vm.qcow2", report, {}, options);
}

std::string TextOf(const BuiltImage& image) { return TextOf(Check(image.bytes)); }

std::vector<std::string> LinesOf(const std::string& text) { return absl::StrSplit(text, '\n'); }

// The codes that have a paragraph, in the order of the text.
std::vector<const FindingCodeInfo*> CodesIn(const std::string& text) {
  std::vector<const FindingCodeInfo*> codes;
  for (const std::string& line : LinesOf(text)) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (!absl::StartsWith(line, "  ") || absl::StartsWith(line, "   ") || words.empty()) continue;
    if (const FindingCodeInfo* info = FindFindingCode(words[0])) codes.push_back(info);
  }
  return codes;
}

// The text as one line, so that what is looked for may be wrapped.
std::string Unwrapped(const std::string& text) {
  return absl::StrJoin(absl::StrSplit(text, absl::ByAnyChar(" \n"), absl::SkipEmpty()), " ");
}

BuiltImage FieldImage() { return BuildImage(FieldImageOptions()); }

// --- On every accident from the field ---

class FieldTextTest : public ::testing::TestWithParam<FieldDamage> {
 protected:
  FieldTextTest() {
    BuiltImage image = FieldImage();
    GetParam().apply(image);
    report_ = Check(image.bytes);
    text_ = TextOf(report_);
  }

  Report report_;
  std::string text_;
};

INSTANTIATE_TEST_SUITE_P(All, FieldTextTest,
                         ::testing::ValuesIn(AllFieldDamages().begin(), AllFieldDamages().end()),
                         [](const auto& damage) {
                           return absl::StrReplaceAll(damage.param.name, {{"-", "_"}});
                         });

TEST_P(FieldTextTest, FitsATerminal) {
  for (const std::string& line : LinesOf(text_)) {
    EXPECT_LE(line.size(), static_cast<size_t>(kTextReportColumns)) << line;
    EXPECT_THAT(line, Not(EndsWith(" ")));
    for (const char c : line) EXPECT_GE(c, ' ');
  }
  EXPECT_LE(LinesOf(text_).size(), 80u);
  EXPECT_THAT(text_, Not(HasSubstr("\n\n\n")));
}

TEST_P(FieldTextTest, EveryCodeOnceAndTheWorstFirst) {
  const std::vector<const FindingCodeInfo*> codes = CodesIn(text_);
  EXPECT_EQ(codes.size(), report_.code_totals.size());
  for (size_t i = 1; i < codes.size(); ++i) {
    EXPECT_GE(codes[i - 1]->data, codes[i]->data);
    if (codes[i - 1]->data == codes[i]->data) {
      EXPECT_LE(codes[i - 1]->severity, codes[i]->severity);
    }
  }
}

TEST_P(FieldTextTest, HeadlineAndNextStep) {
  if (report_.code_totals.empty()) return;
  EXPECT_THAT(text_, StartsWith("vm.qcow2: "));
  EXPECT_THAT(text_, HasSubstr(absl::StrCat("qcow2check explain ", CodesIn(text_)[0]->name)));
  const bool bad = report_.data != DataState::kNone;
  EXPECT_EQ(absl::StrContains(LinesOf(text_)[0] + LinesOf(text_)[1], "do not start the VM") ||
                absl::StrContains(LinesOf(text_)[0] + LinesOf(text_)[1], "Do not start the VM"),
            bad);
  EXPECT_EQ(absl::StrContains(text_, "Keep a copy of the file as it is"), bad);
}

TEST_P(FieldTextTest, WhatMayBeTheOnlyCopyIsNeverCalledWaste) {
  if (report_.held_back.clusters == 0) return;
  EXPECT_THAT(text_, Not(HasSubstr("no harm to data")));
  EXPECT_THAT(text_, HasSubstr("do not let any tool free them"));
  EXPECT_THAT(Unwrapped(text_), HasSubstr("`qemu-img check -r` would destroy"));
}

TEST_P(FieldTextTest, LostRangesAreSaid) {
  EXPECT_EQ(absl::StrContains(text_, "Guest ranges that cannot be read"),
            report_.lost_guest_bytes != 0);
}

TEST_P(FieldTextTest, EndsInTheLinesOfQemuImg) {
  if (report_.verdict == Verdict::kNotQcow2) return;
  EXPECT_EQ(absl::StrContains(text_, "No errors were found on the image.\n"),
            report_.totals.corruptions + report_.totals.leaks + report_.totals.check_errors == 0);
  EXPECT_EQ(absl::StrContains(text_, absl::StrCat("\n", report_.totals.corruptions,
                                                  " errors were found on the image.\n")),
            report_.totals.corruptions != 0);
  EXPECT_EQ(absl::StrContains(text_, absl::StrCat("\n", report_.totals.leaks,
                                                  " leaked clusters were found on the image.\n")),
            report_.totals.leaks != 0);
  // Without a header there is no end to tell.
  if (report_.image.version == 0) return;
  EXPECT_THAT(text_, EndsWith(absl::StrCat(
                         "\nImage end offset: ", report_.statistics.image_end_offset, "\n")));
}

TEST_P(FieldTextTest, ColourChangesNothingElse) {
  const std::string colourful = TextOf(report_, {.colour = true});
  EXPECT_THAT(text_, Not(HasSubstr("\x1b")));
  EXPECT_EQ(absl::StrReplaceAll(
                colourful, {{"\x1b[31m", ""}, {"\x1b[32m", ""}, {"\x1b[33m", ""}, {"\x1b[0m", ""}}),
            text_);
  EXPECT_EQ(absl::StrContains(colourful, "\x1b[31m"), report_.totals.corruptions != 0);
}

// --- Single properties ---

TEST(TextReportTest, NothingIsSaidOfACleanImageButTheLinesOfQemuImg) {
  EXPECT_EQ(TextOf(FieldImage()),
            "No errors were found on the image.\n"
            "512/32768 = 1.56% allocated, 0.00% fragmented, 0.00% compressed clusters\n"
            "Image end offset: 33947648\n");
}

TEST(TextReportTest, OfSeveralImagesACleanOneIsNamed) {
  EXPECT_THAT(TextOf(Check(FieldImage().bytes), {.several_images = true}),
              StartsWith("vm.qcow2: clean. Guest data is intact.\nNo errors were found"));
}

TEST(TextReportTest, ABenignLeakIsCalledWaste) {
  BuiltImage image = FieldImage();
  SetL2Entry(image, 0, 0);
  const std::string text = TextOf(image);
  EXPECT_THAT(text, StartsWith("vm.qcow2: leaks. Guest data is intact.\n"));
  EXPECT_THAT(text, HasSubstr("\n1 leaked clusters were found on the image.\n"
                              "This means waste of disk space, but no harm to data.\n"));
  EXPECT_THAT(text, HasSubstr("- at 0x50000: refcount 1, never referenced\n"));
}

TEST(TextReportTest, AnInstanceSaysHostPlaceGuestRangeAndOwners) {
  BuiltImage image = FieldImage();
  TwoGuestOneHost(image);
  EXPECT_THAT(Unwrapped(TextOf(image)),
              HasSubstr("- at 0x50000, guest 0 to 64 KiB; used by data cluster (guest 0x0) and "
                        "data cluster (guest 0x200000); the unreferenced cluster at 0x60000 is "
                        "probably the missing one"));
}

TEST(TextReportTest, AnEntrySaysItsIndexesAndWhereItPoints) {
  BuiltImage image = FieldImage();
  EntryMisaligned(image);
  EXPECT_THAT(TextOf(image),
              HasSubstr("- at 0x40000 (L1 entry 0, L2 entry 0), points to 0x50200, guest 0 to 64 "
                        "KiB"));
}

// Fifty clusters, never two side by side, so that nothing is merged.
Report FiftyFindings(uint64_t max_findings) {
  BuiltImage image = FieldImage();
  for (uint64_t i = 0; i < 50; ++i) {
    SetRefcount(image, image.ClusterOf(image.l1.clusters[2 * i].host_offset), 0);
  }
  return Check(image.bytes, {.max_findings = max_findings});
}

TEST(TextReportTest, ThreeInstancesOfACodeAreShownAndTheRestCounted) {
  const std::string text = TextOf(FiftyFindings(1000));
  const std::string paragraph =
      text.substr(text.find("refcount-zero-in-use"),
                  text.find("copied-flag-wrong") - text.find("refcount-zero-in-use"));
  int items = 0;
  for (const std::string& line : LinesOf(paragraph)) {
    items += absl::StrContains(line, "    - at 0x") ? 1 : 0;
  }
  EXPECT_EQ(items, 3);
  EXPECT_THAT(paragraph, HasSubstr("- and 47 more places (all with --json)\n"));
}

TEST(TextReportTest, AListThatJsonCutsIsNotPromisedWhole) {
  EXPECT_THAT(TextOf(FiftyFindings(10)),
              HasSubstr("- and 47 more places (the first 10 with --json)\n"));
}

TEST(TextReportTest, LostRangesAreExactAndCapped) {
  BuiltImage image = FieldImage();
  TruncatedTail(image);
  const std::string text = Unwrapped(TextOf(image));
  // 64 clusters of 64 KiB, 2 MiB apart: in words all would begin and end at 1.38 GiB.
  EXPECT_THAT(text, HasSubstr("Guest ranges that cannot be read (4 MiB): 0x58000000-0x5800ffff (64 "
                              "KiB at 1.38 GiB), 0x58200000-0x5820ffff"));
  EXPECT_THAT(text, HasSubstr(", and 60 more ranges"));
}

TEST(TextReportTest, DataIsNotCalledIntactWhereNotAllWasExamined) {
  BuiltImage image = FieldImage();
  FlipBit64(image.bytes, 72, 40);
  const std::string text = TextOf(image);
  EXPECT_THAT(text, StartsWith("vm.qcow2: uses features that this program does not know.\n"
                               "No damage to guest data in the part that was examined.\n"));
  EXPECT_THAT(text, HasSubstr("\n  Not examined:\n  - the meaning of unknown features: "));
  EXPECT_THAT(text, Not(HasSubstr("Guest data is intact")));
}

TEST(TextReportTest, ARepairIsProposedWhereThereIsOne) {
  BuiltImage image = FieldImage();
  SetL2Entry(image, 0, 0);
  const Report leaky = Check(image.bytes);
  EXPECT_THAT(
      TextOf(leaky, {.repair_path = "a b/-vm.qcow2"}),
      HasSubstr("\n  Next: qcow2check --repair --dry-run 'a b/-vm.qcow2'\n        qcow2check "
                "explain leaked-cluster\n"));
  EXPECT_THAT(TextOf(leaky), Not(HasSubstr("--repair")));
  EXPECT_THAT(TextOf(Check(FieldImage().bytes), {.repair_path = "vm.qcow2"}),
              Not(HasSubstr("--repair")));
}

TEST(ShellQuotedTest, PlainWordsStayAndOthersAreQuoted) {
  EXPECT_EQ(ShellQuoted("/var/lib/vm-1_a.qcow2"), "/var/lib/vm-1_a.qcow2");
  EXPECT_EQ(ShellQuoted(""), "''");
  EXPECT_EQ(ShellQuoted("it's $HOME"), "'it'\\''s $HOME'");
  EXPECT_EQ(ShellQuoted("größe"), "'größe'");
  EXPECT_EQ(ShellQuoted("a\n'\\9"), "$'a\\012\\'\\\\9'");
  EXPECT_EQ(CommandLine("undo", {"-a", "b"}), "qcow2check undo ./-a b");
}

TEST(TextReportTest, WhatIsNoImageGetsNoSummary) {
  const std::string text = TextOf(Check(std::vector<uint8_t>(4096, 0x5a)));
  EXPECT_THAT(text, StartsWith("vm.qcow2: not a qcow2 image.\n"));
  EXPECT_THAT(text, Not(HasSubstr("No errors were found")));
}

// The image can be used again: what the repair gave up it has said, and what is kept is safe from
// its writers.
TEST(TextReportTest, WhatARepairKeptIsNoReasonNotToStartTheVm) {
  BuiltImage image = FieldImage();
  const uint64_t table = image.L2At(0).host_offset;
  FillWithText(image.bytes, table, image.cluster_size());
  EXPECT_THAT(TextOf(Check(image.bytes)), HasSubstr("do not start the VM"));
  const std::string text = TextOf(Check(Repair(image.bytes).bytes));
  EXPECT_THAT(text, HasSubstr("An earlier repair kept clusters that may be lost guest data"));
  EXPECT_THAT(text, Not(HasSubstr("do not start the VM")));
}

TEST(TextReportTest, AHeaderThatIsGoneIsAWarningToKeepTheFile) {
  BuiltImage image = FieldImage();
  HeaderText(image);
  const std::string text = TextOf(image);
  EXPECT_THAT(text, HasSubstr("do not start the VM"));
  EXPECT_THAT(text, HasSubstr("Keep a copy of the file"));
}

TEST(TextReportTest, NoNameReachesTheTerminalAsControlCharacters) {
  const BuiltImage image = BuildImage(
      {.backing = BackingOptions{.file = "nbd:\x1b]0;x\x07\n\xff\xc2\x9b", .format = ""}});
  Report report = Check(image.bytes);
  report.coverage.skipped.push_back({"a\x1b[2J", "b\x07"});
  const std::string text = TextReport(
      "a\x1b[31m\r\nb", report, {{.filename = "base\x1b.qcow2", .format = "\x1b[31mraw"}}, {});
  for (const unsigned char c : text) {
    EXPECT_TRUE(c == '\n' || (c >= ' ' && c < 0x7f)) << static_cast<int>(c);
  }
  EXPECT_THAT(text, StartsWith("a\\x1b[31m\\x0d\\x0ab: "));
  EXPECT_THAT(text, HasSubstr("Backing file base\\x1b.qcow2 (\\x1b[31mraw): clean\n"));
  EXPECT_THAT(text, HasSubstr("  - a\\x1b[2J: b\\x07\n"));
}

TEST(TextReportTest, LayersOfTheChainAreListed) {
  const std::string text = TextReport("top.qcow2", Check(FieldImage().bytes),
                                      {{.filename = "base.qcow2", .format = "qcow2"}}, {});
  EXPECT_THAT(text, StartsWith("Backing file base.qcow2 (qcow2): clean\nNo errors were found"));
}

TEST(PrintableTest, TextStaysAndControlCharactersAreShown) {
  EXPECT_EQ(Printable("disk 1.qcow2"), "disk 1.qcow2");
  EXPECT_EQ(Printable("größe-磁盘-🙂"), "größe-磁盘-🙂");
  EXPECT_EQ(Printable(absl::string_view("a\0b\x7f", 4)), "a\\x00b\\x7f");
  EXPECT_EQ(Printable("\xc2\x9b"), "\\xc2\\x9b");                    // control, in UTF-8
  EXPECT_EQ(Printable("\xe2\x80\xae"), "\\xe2\\x80\\xae");           // right to left
  EXPECT_EQ(Printable("\xff\xc3"), "\\xff\\xc3");                    // no UTF-8
  EXPECT_EQ(Printable("\xc0\x9b"), "\\xc0\\x9b");                    // overlong
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // surrogate
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // past the last
}

}  // namespace
}  // namespace qcow2check::testing
