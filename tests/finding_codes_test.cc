// Every finding code has damage that gives it and a near miss that must not, and words that say
// something. A code without either fails here.
#include <algorithm>
#include <cctype>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "checker/report.h"
#include "common/finding.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/finding_cases.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const CodeTotal* TotalOf(const Report& report, FindingCode code) {
  const auto found = std::find_if(report.code_totals.begin(), report.code_totals.end(),
                                  [&](const CodeTotal& total) { return total.code == code; });
  return found == report.code_totals.end() ? nullptr : &*found;
}

// The mildest verdict that a finding of the tally allows.
Verdict FloorOf(Tally tally) {
  switch (tally) {
    case Tally::kNothing:
      return Verdict::kClean;
    case Tally::kLeaks:
      return Verdict::kLeaks;
    case Tally::kCorruptions:
      return Verdict::kCorrupt;
    case Tally::kCheckErrors:
      return Verdict::kIncomplete;
  }
  return Verdict::kClean;
}

int ExpectedExitCode(Verdict verdict) {
  static const std::map<Verdict, int> kExitCodes = {
      {Verdict::kClean, 0},        {Verdict::kCorrupt, 2},    {Verdict::kLeaks, 3},
      {Verdict::kNotQcow2, 63},    {Verdict::kIncomplete, 1}, {Verdict::kUnsupported, 1},
      {Verdict::kLimitExceeded, 1}};
  return kExitCodes.at(verdict);
}

// The totals of the report are the sums of what its codes add.
void ExpectTotalsAddUp(const Report& report) {
  std::map<Tally, uint64_t> sums;
  for (const CodeTotal& total : report.code_totals) {
    sums[InfoOf(total.code).tally] += total.count;
  }
  EXPECT_EQ(report.totals.corruptions, sums[Tally::kCorruptions]);
  EXPECT_EQ(report.totals.leaks, sums[Tally::kLeaks]);
  EXPECT_EQ(report.totals.check_errors, sums[Tally::kCheckErrors]);
}

void ExpectPlace(const Fired& fired, FindingCode code) {
  std::vector<std::string> places;
  bool found = false;
  for (const Finding& finding : fired.report.findings) {
    if (finding.code != code) continue;
    found |= fired.place ? finding.host_offset == HostOffset{*fired.place} : !finding.host_offset;
    places.push_back(finding.host_offset ? absl::StrCat("0x", absl::Hex(finding.host_offset->bytes))
                                         : "nowhere");
  }
  EXPECT_TRUE(found) << "it is at " << ::testing::PrintToString(places) << ", not at "
                     << (fired.place ? absl::StrCat("0x", absl::Hex(*fired.place)) : "nowhere");
}

void ExpectFires(const FindingCase& one) {
  const Fired fired = one.fires();
  const FindingCodeInfo& info = InfoOf(one.code);
  const CodeTotal* total = TotalOf(fired.report, one.code);
  ASSERT_NE(total, nullptr) << "the damage does not give the code";
  EXPECT_EQ(total->count, one.count);
  ExpectPlace(fired, one.code);
  ExpectTotalsAddUp(fired.report);
  EXPECT_EQ(NameOf(fired.report.verdict), NameOf(one.verdict));
  EXPECT_GE(fired.report.verdict, FloorOf(info.tally));
  EXPECT_EQ(ExitCodeOf(fired.report), ExpectedExitCode(one.verdict));
  EXPECT_GE(fired.report.data, info.data);
}

void ExpectNearMiss(const FindingCase& one) {
  const Report report = one.near_miss();
  EXPECT_EQ(TotalOf(report, one.code), nullptr) << "the near miss gives the code";
  // A header that is not understood gives hardly any finding, and would prove nothing.
  if (one.code != FindingCode::kHeaderLost) {
    EXPECT_NE(report.image.version, 0u);
  }
}

class FindingCodeTest : public ::testing::TestWithParam<FindingCodeInfo> {};

TEST_P(FindingCodeTest, FiresOnDamageAndNotOnTheNearMiss) {
  size_t cases = 0;
  for (const FindingCase& one : AllFindingCases()) {
    if (one.code != GetParam().code) continue;
    SCOPED_TRACE(absl::StrCat(GetParam().name, ": ", one.edge));
    ++cases;
    ExpectFires(one);
    ExpectNearMiss(one);
  }
  EXPECT_GT(cases, 0u) << "no case in tests/finding_cases*.cc for " << GetParam().name;
}

TEST_P(FindingCodeTest, IsWordedForPeople) {
  const FindingCodeInfo& info = GetParam();
  for (const char c : info.name) {
    EXPECT_TRUE(std::islower(c) != 0 || std::isdigit(c) != 0 || c == '-') << info.name;
  }
  EXPECT_FALSE(absl::StartsWith(info.name, "-") || absl::EndsWith(info.name, "-") ||
               absl::StrContains(info.name, "--"))
      << info.name;
  EXPECT_THAT(info.sentence, Not(IsEmpty()));
  EXPECT_FALSE(absl::EndsWith(info.sentence, ".")) << "a detail or a period follows it";
  EXPECT_TRUE(absl::EndsWith(info.meaning, ".")) << info.meaning;
  EXPECT_TRUE(absl::EndsWith(info.remedy, ".")) << info.remedy;
  for (const absl::string_view text : {info.sentence, info.meaning, info.remedy}) {
    EXPECT_TRUE(std::isupper(text.front()) != 0 || text.front() == '`') << text;
    EXPECT_FALSE(absl::StrContains(text, "  ")) << text;
  }
}

TEST_P(FindingCodeTest, IsFoundByItsNameAndId) {
  ASSERT_NE(FindFindingCode(GetParam().name), nullptr);
  EXPECT_EQ(FindFindingCode(GetParam().name)->code, GetParam().code);
  EXPECT_EQ(InfoOf(GetParam().code).name, GetParam().name);
}

std::string TestName(const ::testing::TestParamInfo<FindingCodeInfo>& info) {
  std::string name(info.param.name);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(AllCodes, FindingCodeTest, ::testing::ValuesIn(AllFindingCodes()),
                         TestName);

TEST(ExplainTest, ExplainsEveryCode) {
  for (const FindingCodeInfo& info : AllFindingCodes()) {
    const CommandResult result =
        RunCommand({QCOW2CHECK_PROGRAM, "explain", std::string(info.name)});
    // The words, however the lines are broken.
    const std::string words =
        absl::StrJoin(absl::StrSplit(result.out, absl::ByAnyChar(" \n"), absl::SkipEmpty()), " ");
    EXPECT_EQ(result.exit_code, 0) << info.name;
    EXPECT_THAT(words, HasSubstr(std::string(info.sentence)));
    EXPECT_THAT(words, HasSubstr(std::string(info.meaning)));
    EXPECT_THAT(words, HasSubstr(std::string(info.remedy)));
    EXPECT_THAT(result.err, IsEmpty());
  }
}

TEST(ExplainTest, RefusesUnknownCodes) {
  for (const char* code : {"no-such-code", "leaked-clusters", "Leaked-Cluster", "72", ""}) {
    const CommandResult result = RunCommand({QCOW2CHECK_PROGRAM, "explain", code});
    EXPECT_EQ(result.exit_code, 1) << code;
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, HasSubstr("there is no finding code"));
  }
  EXPECT_EQ(RunCommand({QCOW2CHECK_PROGRAM, "explain"}).exit_code, 1);
}

TEST(ListCodesTest, ListsEveryCode) {
  const CommandResult result = RunCommand({QCOW2CHECK_PROGRAM, "--list-codes"});
  EXPECT_EQ(result.exit_code, 0);
  for (const FindingCodeInfo& info : AllFindingCodes()) {
    EXPECT_THAT(result.out, HasSubstr(absl::StrCat(" ", info.name, " ")));
  }
}

TEST(ListCodesTest, DocumentationIsUpToDate) {
  const CommandResult result = RunCommand({QCOW2CHECK_PROGRAM, "--list-codes=markdown"});
  const std::vector<uint8_t> page = ReadFile(absl::StrCat(QCOW2CHECK_SOURCE_DIR, "/docs/codes.md"));
  EXPECT_EQ(std::string(page.begin(), page.end()), result.out)
      << "run: qcow2check --list-codes=markdown > docs/codes.md";
}

}  // namespace
}  // namespace qcow2check::testing
