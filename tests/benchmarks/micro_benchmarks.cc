// The loops that a check spends its time in, each on an image or a map that lies in memory:
// decoding tables and counting what they refer to, comparing the counts with the stored refcounts.
//
//   micro_benchmarks [--benchmark_filter=REGEX] [--benchmark_min_time=SECONDS]
#include <cstdint>
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"
#include "checker/check.h"
#include "common/memory_file.h"
#include "common/refcount_block.h"
#include "common/refcount_map.h"
#include "common/refcount_word.h"
#include "tests/benchmarks/case_image.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kMapClusters = uint64_t{1} << 22;

// --- Counting ---

void AddSequentialClusters(benchmark::State& state) {
  for (auto _ : state) {
    RefcountMap map(kMapClusters);
    for (uint64_t i = 0; i < kMapClusters; ++i) benchmark::DoNotOptimize(map.Add(i, 1));
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kMapClusters));
}
BENCHMARK(AddSequentialClusters)->Unit(benchmark::kMillisecond);

void AddRandomClusters(benchmark::State& state) {
  for (auto _ : state) {
    RefcountMap map(kMapClusters);
    // Goes through all clusters once: the multiplier is 1 modulo 4, the increment odd.
    uint64_t cluster = 0;
    for (uint64_t i = 0; i < kMapClusters; ++i) {
      cluster = (cluster * 1664525 + 1013904223) % kMapClusters;
      benchmark::DoNotOptimize(map.Add(cluster, 1));
    }
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kMapClusters));
}
BENCHMARK(AddRandomClusters)->Unit(benchmark::kMillisecond);

// What a run of consecutive L2 entries costs, by its length and weight.
void AddRuns(benchmark::State& state) {
  const uint64_t length = static_cast<uint64_t>(state.range(0));
  const uint64_t weight = static_cast<uint64_t>(state.range(1));
  for (auto _ : state) {
    RefcountMap map(kMapClusters);
    for (uint64_t i = 0; i + length <= kMapClusters; i += length) map.AddRun(i, length, weight);
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kMapClusters));
}
BENCHMARK(AddRuns)->ArgsProduct({{2, 64, 8192}, {1, 30}})->Unit(benchmark::kMillisecond);

// --- Comparing ---

// 64 refcounts of 16 bits at a time, some of them 0, 1 and larger.
std::vector<uint8_t> MixedRefcounts() {
  std::vector<uint8_t> block(64u << 10);
  for (uint64_t i = 0; i < block.size() / 2; ++i) StoreRefcount(block.data(), i, 4, i * 7 % 5);
  return block;
}

void LoadWords(benchmark::State& state) {
  const std::vector<uint8_t> block = MixedRefcounts();
  for (auto _ : state) {
    for (uint64_t at = 0; at < block.size(); at += kWordClusters * 2) {
      benchmark::DoNotOptimize(LoadRefcountWord16(&block[at]));
    }
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(block.size() / 2));
}
BENCHMARK(LoadWords)->Unit(benchmark::kMicrosecond);

void CompareWords(benchmark::State& state) {
  const std::vector<uint8_t> block = MixedRefcounts();
  const std::vector<uint8_t> counts(kWordClusters, 3);
  for (auto _ : state) {
    for (uint64_t at = 0; at < block.size(); at += kWordClusters * 2) {
      benchmark::DoNotOptimize(DifferingRefcounts16(&block[at], counts.data()));
    }
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(block.size() / 2));
}
BENCHMARK(CompareWords)->Unit(benchmark::kMicrosecond);

// --- Whole checks ---

void CheckCase(benchmark::State& state, const CaseOptions& options) {
  MemoryFile file({});
  WriteCaseImage(options, file);
  uint64_t clusters = 0;
  for (auto _ : state) {
    const Report report = CheckImage(file, {});
    if (report.verdict != Verdict::kClean) state.SkipWithError("the image is not clean");
    clusters = report.statistics.allocated_clusters;
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(clusters));
}

// 128 MiB, of which 0.3 MiB are tables: 32,768 clusters in 64 L2 tables.
constexpr CaseOptions kDisk = {.cluster_bits = 12, .l1_entries = 64};

void CheckConsecutive(benchmark::State& state) { CheckCase(state, kDisk); }
BENCHMARK(CheckConsecutive)->Unit(benchmark::kMicrosecond);

void CheckScattered(benchmark::State& state) {
  CaseOptions options = kDisk;
  options.scattered = true;
  CheckCase(state, options);
}
BENCHMARK(CheckScattered)->Unit(benchmark::kMicrosecond);

// Counts above 1, and tables that several L1 tables share.
void CheckSnapshots(benchmark::State& state) {
  CaseOptions options = kDisk;
  options.snapshots = 10;
  options.rewritten_tables = 4;
  CheckCase(state, options);
}
BENCHMARK(CheckSnapshots)->Unit(benchmark::kMicrosecond);

// The argument is the refcount width in bits. The walk is the same for all.
void CheckRefcountWidth(benchmark::State& state) {
  CaseOptions options = kDisk;
  for (options.refcount_order = 0; (1 << options.refcount_order) < state.range(0);) {
    ++options.refcount_order;
  }
  CheckCase(state, options);
}
BENCHMARK(CheckRefcountWidth)->RangeMultiplier(2)->Range(1, 64)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace qcow2check::testing

BENCHMARK_MAIN();
