// What a check costs, in numbers that do not depend on the clock: reads, bytes read, memory.
#include <cstdint>
#include <string>
#include <vector>

#include "checker/check.h"
#include "common/byte_order.h"
#include "common/header.h"
#include "common/table_entry.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/benchmarks/case_image.h"
#include "tests/counting_file.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kClusterBytes = 64u << 10;

struct Cost {
  Report report;
  uint64_t reads = 0;
  uint64_t bytes_read = 0;
};

Cost CheckCounted(CountingFile& file, uint64_t threads = 2) {
  file.Restart();
  Cost cost = {.report = CheckImage(file, {.threads = threads})};
  cost.reads = file.reads();
  cost.bytes_read = file.bytes_read();
  return cost;
}

Cost CheckCounted(const CaseOptions& options) {
  CountingFile file;
  WriteCaseImage(options, file);
  return CheckCounted(file);
}

uint64_t TablesAndBlocks(const Report& report) {
  return report.coverage.l2_tables + report.coverage.refcount_blocks;
}

TEST(CostTest, EachTableAndEachBlockIsReadOnce) {
  const Cost cost = CheckCounted(CaseOptions{.l1_entries = 40});
  EXPECT_EQ(cost.report.verdict, Verdict::kClean);
  EXPECT_EQ(cost.report.coverage.l2_tables, 40u);
  // Besides them: header, L1 table, refcount table.
  EXPECT_LE(cost.bytes_read, (TablesAndBlocks(cost.report) + 3) * kClusterBytes);
  EXPECT_LE(cost.reads, TablesAndBlocks(cost.report) + 4);
}

TEST(CostTest, NeighboursInTheFileAreReadAtOnce) {
  // Empty but for one cluster each, the tables follow each other.
  const Cost cost =
      CheckCounted(CaseOptions{.cluster_bits = 12, .l1_entries = 4096, .clusters_per_table = 1});
  EXPECT_EQ(cost.report.coverage.l2_tables, 4096u);
  EXPECT_LE(cost.bytes_read, (TablesAndBlocks(cost.report) + 20) * 4096);
}

TEST(CostTest, WhatSnapshotsShareIsReadOnce) {
  const Cost few = CheckCounted(CaseOptions{.l1_entries = 8, .snapshots = 1});
  const Cost many = CheckCounted(CaseOptions{.l1_entries = 8, .snapshots = 100});
  EXPECT_EQ(many.report.verdict, Verdict::kClean);
  EXPECT_EQ(many.report.coverage.l2_tables, few.report.coverage.l2_tables);
  // A snapshot has an L1 table of its own and an entry of 150 bytes at most.
  EXPECT_LE(many.bytes_read - few.bytes_read, 99u * (8 * 8 + 150) + kClusterBytes);
}

TEST(CostTest, SnapshotsOnOneL1TableCostAsMuchAsOne) {
  const CaseOptions hostile = {.refcount_order = 3,
                               .l1_entries = 4096,
                               .clusters_per_table = 1,
                               .one_l2_table = true,
                               .snapshots = 200,
                               .shared_l1_table = true};
  const Cost cost = CheckCounted(hostile);
  EXPECT_EQ(cost.report.coverage.l2_tables, 1u);
  EXPECT_LE(cost.reads, 40u);
  EXPECT_LE(cost.bytes_read, 12 * kClusterBytes);
}

// What is not there is not read, whatever points to it.
TEST(CostTest, HolesAreNotRead) {
  CountingFile file;
  WriteCaseImage({.l1_entries = 64, .clusters_per_table = 1}, file);
  const Cost before = CheckCounted(file);
  std::vector<uint8_t> header(kHeaderBytesKnown), l1(64 * 8);
  ASSERT_TRUE(file.ReadAt(HostOffset{0}, absl::MakeSpan(header)).ok());
  ASSERT_TRUE(file.ReadAt(HostOffset{Load64(&header[40])}, absl::MakeSpan(l1)).ok());
  for (uint64_t i = 0; i < 32; ++i) {
    const uint64_t table = EntryOffset(Load64(&l1[i * 8]));
    ASSERT_TRUE(file.Discard({table, table + kClusterBytes}).ok());
  }
  const Cost after = CheckCounted(file);
  EXPECT_EQ(after.report.coverage.l2_tables, 64u);
  // What is lost with the tables is looked for among the leaks, which takes a few reads.
  EXPECT_GE(before.bytes_read - after.bytes_read, 30 * kClusterBytes);
}

TEST(CostTest, TheSameIsReadByAnyNumberOfThreads) {
  CountingFile file;
  WriteCaseImage({.l1_entries = 40, .snapshots = 3, .rewritten_tables = 10}, file);
  const Cost one = CheckCounted(file, 1);
  const Cost many = CheckCounted(file, 4);
  EXPECT_EQ(one.reads, many.reads);
  EXPECT_EQ(one.bytes_read, many.bytes_read);
}

// 256 GiB of 64 KiB clusters, all in use.
TEST(CostTest, CountsOfADiskThatIsFullTakeNearlyNoMemory) {
  CountingFile file;
  WriteCaseImage({.l1_entries = 512}, file);
  TempDir dir;
  const CommandResult run = RunCommand(
      {QCOW2CHECK_MEASURE, dir.Path("measured"), QCOW2CHECK_PROGRAM, "--threads=2", file.path()});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const std::vector<uint8_t> measured = ReadFile(dir.Path("measured"));
  const nlohmann::json json = nlohmann::json::parse(measured.begin(), measured.end());
  EXPECT_EQ(json["exit_code"], 0);
  EXPECT_LT(json["peak_memory_bytes"], 10'000'000);
}

}  // namespace
}  // namespace qcow2check::testing
