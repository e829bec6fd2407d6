// Merging, counting and capping of findings.
#include "checker/finding_list.h"

#include <cstdint>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qcow2check {
namespace {

Finding LeakAt(uint64_t offset, uint64_t stored = 1) {
  return {.code = FindingCode::kLeakedCluster,
          .host_offset = HostOffset{offset},
          .length_bytes = 512,
          .clusters = 1,
          .stored = stored};
}

Report ReportOf(FindingList& list) {
  Report report;
  list.MoveTo(report, 1 << 20);
  return report;
}

TEST(FindingList, NeighboursWithEqualValuesAreOneFinding) {
  FindingList list(10);
  list.Add(LeakAt(0));
  list.Add(LeakAt(512));
  list.Add(LeakAt(2048));
  list.Add(LeakAt(2560, 7));
  const Report report = ReportOf(list);
  ASSERT_EQ(report.findings.size(), 3u);
  EXPECT_EQ(report.findings[0].clusters, 2u);
  EXPECT_EQ(report.findings[0].length_bytes, 1024u);
  EXPECT_EQ(report.totals.leaks, 4u);
}

TEST(FindingList, EntriesMergeOnlyWhileTheyPointToConsecutiveClusters) {
  const auto entry = [](uint64_t index, uint64_t target) {
    return Finding{.code = FindingCode::kDataPastEnd,
                   .host_offset = HostOffset{index * 8},
                   .length_bytes = 8,
                   .clusters = 1,
                   .guest_offset = GuestOffset{index * 512},
                   .guest_length_bytes = 512,
                   .target = HostOffset{target},
                   .stored = target};
  };
  FindingList list(10);
  list.Add(entry(0, 0x10000));
  list.Add(entry(1, 0x10200));
  list.Add(entry(2, 0x20000));
  const Report report = ReportOf(list);
  ASSERT_EQ(report.findings.size(), 2u);
  EXPECT_EQ(report.findings[0].guest_length_bytes, 1024u);
  EXPECT_EQ(report.findings[0].stored, 0x10000u);
  EXPECT_EQ(report.lost_guest_bytes, 3 * 512u);
}

TEST(FindingList, TotalsAreExactBeyondTheCap) {
  FindingList list(2);
  for (uint64_t i = 0; i < 5; ++i) list.Add(LeakAt(i * 4096));
  list.Add(LeakAt(4 * 4096 + 512));  // continues one that was not kept
  const Report report = ReportOf(list);
  EXPECT_EQ(report.findings.size(), 2u);
  ASSERT_EQ(report.code_totals.size(), 1u);
  EXPECT_EQ(report.code_totals[0].findings, 5u);
  EXPECT_EQ(report.code_totals[0].count, 6u);
  EXPECT_EQ(report.totals.leaks, 6u);
}

TEST(FindingList, ReportIsOrderedByOffsetThenCode) {
  FindingList list(10);
  list.Add(LeakAt(4096));
  list.Add({.code = FindingCode::kRefcountTooLow, .host_offset = HostOffset{4096}});
  list.Add(LeakAt(0));
  const Report report = ReportOf(list);
  std::string order;
  for (const Finding& finding : report.findings) {
    order += std::string(InfoOf(finding.code).name) + " ";
  }
  EXPECT_EQ(order, "leaked-cluster refcount-too-low leaked-cluster ");
}

TEST(FindingList, WorstEffectOnDataWins) {
  FindingList list(10);
  list.Add(LeakAt(0));
  list.Add({.code = FindingCode::kCrossLinkedData});
  list.Add({.code = FindingCode::kRefcountTooLow});
  EXPECT_EQ(ReportOf(list).data, DataState::kAmbiguous);
}

}  // namespace
}  // namespace qcow2check
