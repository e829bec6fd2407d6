// Repairs of much at once: what they read, write and flush follows the stretches that change, not
// the number of findings; and however many threads look at the image, the plan is the same.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "checker/check.h"
#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/header.h"
#include "common/limits.h"
#include "common/table_entry.h"
#include "gtest/gtest.h"
#include "repair/plan.h"
#include "repair/repair.h"
#include "repair/undo.h"
#include "repair/undo_log.h"
#include "tests/benchmarks/case_image.h"
#include "tests/counting_file.h"
#include "tests/recording_file.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kMebibyte = 1 << 20;
// Headers, marks, a table, a pointer: what comes once, however much is repaired.
constexpr uint64_t kFew = 12;

// 13 L2 tables of 8,192 clusters of 64 KiB each, and as many leaks: 64 behind 64 of the data.
constexpr CaseOptions kLeaks = {.l1_entries = 13, .leaks_per_table = 8192};
constexpr uint64_t kLeakedClusters = 13 * 8192;
// 1 GiB in clusters of 4 KiB: 512 L2 tables, 129 refcount blocks.
constexpr CaseOptions kManyBlocks = {.cluster_bits = 12, .l1_entries = 512};
constexpr uint64_t kBlocks = 129;

Header HeaderOf(const ImageFile& image) {
  Bytes bytes(kHeaderBytesKnown);
  EXPECT_TRUE(image.ReadAt(HostOffset{0}, absl::MakeSpan(bytes)).ok());
  return DecodeHeader(bytes);
}

void ZeroRefcountTable(WritableImageFile& image) {
  const Header header = HeaderOf(image);
  const Bytes zeros(uint64_t{header.refcount_table_clusters} << header.cluster_bits);
  ASSERT_TRUE(image.WriteAt(HostOffset{header.refcount_table_offset}, zeros).ok());
}

// Every third entry of the active L2 tables loses its COPIED flag.
void ClearCopiedFlags(WritableImageFile& image) {
  const Header header = HeaderOf(image);
  Bytes l1(uint64_t{header.l1_size} * 8);
  ASSERT_TRUE(image.ReadAt(HostOffset{header.l1_table_offset}, absl::MakeSpan(l1)).ok());
  Bytes table(uint64_t{1} << header.cluster_bits);
  for (uint64_t slot = 0; slot < l1.size(); slot += 8) {
    const HostOffset place = {EntryOffset(Load64(&l1[slot]))};
    ASSERT_TRUE(image.ReadAt(place, absl::MakeSpan(table)).ok());
    for (uint64_t at = 0; at < table.size(); at += 24) {
      Store64(&table[at], Load64(&table[at]) & ~kCopiedBit);
    }
    ASSERT_TRUE(image.WriteAt(place, table).ok());
  }
}

struct Ranges {
  uint64_t in_steps = 0;  // stretches of sectors that a step writes, and pieces of 1 MiB of them
  uint64_t in_all = 0;    // the same of the whole plan
};

uint64_t CountRanges(std::vector<Extent> sectors) {
  std::sort(sectors.begin(), sectors.end(),
            [](const Extent& a, const Extent& b) { return a.begin_bytes < b.begin_bytes; });
  uint64_t count = 0;
  Extent now;
  const auto end_range = [&] {
    count += DivideRoundingUp(now.end_bytes - now.begin_bytes, kMebibyte);
  };
  for (const Extent& next : sectors) {
    if (next.begin_bytes <= now.end_bytes) {
      now.end_bytes = std::max(now.end_bytes, next.end_bytes);
    } else {
      end_range();
      now = next;
    }
  }
  end_range();
  return count;
}

Ranges RangesOf(const Plan& plan) {
  Ranges ranges;
  std::vector<Extent> all;
  for (const PlanStep& step : plan.steps) {
    std::vector<Extent> sectors;
    for (const PlannedWrite& write : step.writes) {
      sectors.push_back({write.offset_bytes / kSectorBytes * kSectorBytes,
                         RoundUp(write.offset_bytes + write.length_bytes, kSectorBytes)});
    }
    ranges.in_steps += CountRanges(sectors);
    all.insert(all.end(), sectors.begin(), sectors.end());
  }
  ranges.in_all = CountRanges(all);
  return ranges;
}

class RepairScaleTest : public ::testing::Test {
 protected:
  void Build(const CaseOptions& options) {
    WriteCaseImage(options, image_);
    sound_check_bytes_ = CheckImage(image_, {}).coverage.bytes_read;
  }

  RepairResult Repair(RepairMode mode) {
    image_.Restart();
    return RepairImage(image_, {}, {.mode = mode},
                       [this]() -> absl::StatusOr<std::unique_ptr<WritableImageFile>> {
                         return std::make_unique<FailingFile>(undo_);  // only lends it
                       });
  }

  // What carrying out the plan costs, besides checks.
  void ExpectFewOperations(const RepairResult& result) {
    ASSERT_TRUE(result.status.ok()) << result.status;
    const Ranges ranges = RangesOf(result.plan);
    EXPECT_LE(image_.writes(), ranges.in_steps + kFew);
    EXPECT_LE(image_.flushes(), kFew);
    EXPECT_LE(undo_.flushes(), kFew);
    EXPECT_LE(undo_.writes(), undo_.size_bytes() / kMebibyte + kFew);
    const absl::StatusOr<UndoLog> log = ReadUndoLog(undo_);
    ASSERT_TRUE(log.ok()) << log.status();
    EXPECT_LE(log->records, ranges.in_all + kFew);
  }

  CountingFile image_, undo_;
  uint64_t sound_check_bytes_ = 0;
};

TEST_F(RepairScaleTest, AHundredThousandLeaks) {
  Build(kLeaks);
  const RepairResult result = Repair(RepairMode::kLeaks);
  ExpectFewOperations(result);
  EXPECT_EQ(result.leaks_fixed, kLeakedClusters);
  EXPECT_EQ(result.after.totals.leaks, 0u);
  EXPECT_GE(result.plan.steps.front().writes.size(), kLeakedClusters / 64);
  EXPECT_LE(image_.writes(), kFew + 7) << "one for each refcount block";
  // The check before, that of the plan and that of the disk; and refcounts, a page at a time.
  const uint64_t pages = kLeakedClusters * 2 * 2 / 4096;
  EXPECT_LE(image_.reads(), 3 * result.before.coverage.reads + 3 * pages + 2 * kFew);
  EXPECT_LE(image_.bytes_read(), 5 * sound_check_bytes_);
}

TEST_F(RepairScaleTest, ARebuildOfManyRefcountBlocks) {
  Build(kManyBlocks);
  ZeroRefcountTable(image_);
  const RepairResult result = Repair(RepairMode::kAll);
  ExpectFewOperations(result);
  EXPECT_EQ(result.after.totals.corruptions, 0u);
  EXPECT_EQ(result.after.totals.leaks, 0u);
  // New blocks at once; then each gives back the cluster of an old one.
  EXPECT_LE(image_.writes(), kBlocks + kFew);
  EXPECT_LE(image_.reads(), 5 * result.before.coverage.reads + 8 * kBlocks);
  EXPECT_LE(image_.bytes_read(), 8 * sound_check_bytes_);
  ASSERT_TRUE(UndoRepair(image_, undo_, {}).ok());
  EXPECT_EQ(CheckImage(image_, {}).totals.corruptions, result.before.totals.corruptions);
}

TEST_F(RepairScaleTest, ManyFlags) {
  Build({.l1_entries = 13});
  ClearCopiedFlags(image_);
  const RepairResult result = Repair(RepairMode::kAll);
  ExpectFewOperations(result);
  EXPECT_EQ(result.after.totals.corruptions, 0u);
  EXPECT_LE(image_.writes(), 13 + kFew) << "one for each L2 table";
}

// --- Threads ---

using PlannedBytes = std::vector<std::pair<uint64_t, Bytes>>;

PlannedBytes BytesOf(const Plan& plan) {
  PlannedBytes bytes;
  for (const PlanStep& step : plan.steps) {
    for (const PlannedWrite& write : step.writes) {
      bytes.push_back({write.offset_bytes, write.old_bytes});
      bytes.push_back({write.offset_bytes, write.new_bytes});
    }
    bytes.push_back({step.grow_to_bytes.value_or(0), {}});
  }
  return bytes;
}

TEST_F(RepairScaleTest, ThePlanIsTheSameForAnyNumberOfThreads) {
  Build(kManyBlocks);
  ClearCopiedFlags(image_);
  ZeroRefcountTable(image_);
  const PlanAndReport one = CheckAndPlan(image_, {.threads = 1}, {});
  const PlanAndReport many = CheckAndPlan(image_, {.threads = 7, .part_bytes = 4096}, {});
  EXPECT_FALSE(one.plan.empty());
  EXPECT_EQ(BytesOf(one.plan), BytesOf(many.plan));
  EXPECT_EQ(one.report.findings.size(), many.report.findings.size());
}

// The report that comes with a plan is that of a check.
TEST_F(RepairScaleTest, OneCheckMakesTheReportAndThePlan) {
  Build(kLeaks);
  for (const uint64_t max_findings : {0, 7, 1000}) {
    const Report report = CheckImage(image_, {.max_findings = max_findings});
    const Report planned = CheckAndPlan(image_, {.max_findings = max_findings}, {}).report;
    EXPECT_EQ(planned.verdict, report.verdict);
    EXPECT_EQ(planned.totals.leaks, report.totals.leaks);
    EXPECT_EQ(planned.statistics.total_clusters, report.statistics.total_clusters);
    ASSERT_EQ(planned.findings.size(), report.findings.size());
    for (size_t i = 0; i < report.findings.size(); ++i) {
      EXPECT_EQ(planned.findings[i].code, report.findings[i].code);
      EXPECT_EQ(planned.findings[i].host_offset, report.findings[i].host_offset);
    }
  }
}

}  // namespace
}  // namespace qcow2check::testing
