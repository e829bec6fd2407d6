#include "checker/check_state.h"

#include <time.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "common/threads.h"

namespace qcow2check {

void CheckState::MakeMaps() {
  expected.emplace(file_clusters + kClustersBehindEnd, memory.get());
  const uint64_t wanted = file_clusters * 2 + (uint64_t{1} << 20);
  tracked_clusters =
      std::min(wanted, kMaxFileClusters + kPageClusters) / kPageClusters * kPageClusters;
  for (auto* set : {&copied, &not_copied, &compressed, &collisions, &past_end, &mismatched,
                    &too_high, &copied_questions, &stored_is_one}) {
    set->emplace(tracked_clusters, memory.get());
  }
  // What lies in holes was never written: the length of the file is only a claim.
  table_entries_left = (uint64_t{1} << 22) + file.allocated_bytes() / 2;
}

bool CheckState::Read(HostOffset offset, absl::Span<uint8_t> dst, Structure structure) {
  PartNotes notes = NewPart();
  const bool complete = ReadMetadata(file, offset, dst, structure, notes);
  Absorb(std::move(notes));
  return complete;
}

void CheckState::Absorb(PartNotes notes) {
  coverage.reads += notes.reads;
  coverage.bytes_read += notes.bytes_read;
  if (options.progress != nullptr) options.progress->bytes_read += notes.bytes_read;
  if (notes.findings != nullptr) findings.Absorb(std::move(*notes.findings));
  for (SkippedPart& part : notes.skipped) Skip(std::move(part.what), std::move(part.why));
}

void CheckState::Skip(std::string what, std::string why) {
  if (coverage.skipped.size() > kMostSkippedListed) return;
  if (coverage.skipped.size() == kMostSkippedListed) {
    what = "more parts than are listed here";
    why = "see the findings";
  }
  coverage.skipped.push_back({std::move(what), std::move(why)});
}

namespace {

absl::Duration ProcessorTimeOfProcess() {
  timespec time = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return absl::DurationFromTimespec(time);
}

}  // namespace

const OrphanRun* CheckState::OrphansFrom(uint64_t cluster) const {
  const auto found =
      std::lower_bound(orphans.begin(), orphans.end(), cluster,
                       [](const OrphanRun& run, uint64_t at) { return run.first_cluster < at; });
  return found != orphans.end() && found->first_cluster == cluster ? &*found : nullptr;
}

StopReason CheckState::NewStopReason() const {
  if (options.progress != nullptr && options.progress->stop) return StopReason::kInterrupted;
  if (memory->exceeded()) return StopReason::kMemory;
  if (options.deadline != absl::InfiniteFuture() && absl::Now() >= options.deadline) {
    return StopReason::kTime;
  }
  if (options.processor_time_end != absl::InfiniteDuration() &&
      ProcessorTimeOfProcess() >= options.processor_time_end) {
    return StopReason::kProcessorTime;
  }
  return StopReason::kNone;
}

bool CheckState::MayGoOn() const {
  if (stop_reason_.load(std::memory_order_relaxed) != StopReason::kNone) return false;
  const StopReason reason = NewStopReason();
  if (reason == StopReason::kNone) return true;
  StopReason none = StopReason::kNone;
  stop_reason_.compare_exchange_strong(none, reason);
  return false;
}

bool CheckState::LooksForHoles() const {
  const uint64_t tables = l2_tables.size() + refcount_blocks.size();
  return file.is_remote() ||
         SaturatingMultiply(tables, geo().cluster_size()) > file.allocated_bytes();
}

uint64_t CheckState::threads() const {
  if (options.threads != 0) return options.threads;
  // Each has some reads under way, and servers do not serve more than these ask for at once; more
  // processors than this would wait for the memory.
  constexpr uint64_t kForNetwork = 8, kMostProcessors = 16;
  return file.is_remote() ? UsableThreads(kForNetwork)
                          : std::min(UsableThreads(0), kMostProcessors);
}

bool CheckState::Spend(uint64_t entries, Structure structure) {
  if (entries <= table_entries_left) {
    table_entries_left -= entries;
    return true;
  }
  table_entries_left = 0;
  if (!findings.Has(FindingCode::kLimitReached)) {
    findings.Add({.code = FindingCode::kLimitReached,
                  .structure = structure,
                  .detail = absl::StrFormat("tables (here: %s) overlap so often that walking them "
                                            "all would take too long",
                                            WordsOf(structure))});
    Skip(absl::StrFormat("a %s that overlaps others", WordsOf(structure)), "limit reached");
  }
  return false;
}

bool CheckState::IsOutside(uint64_t offset, uint64_t length) const {
  const uint64_t size = file.size_bytes();
  if (offset >= size) return true;
  const uint64_t end = SaturatingAdd(offset, length);
  return end > size && end - size >= geo().cluster_size();
}

void CheckState::Count(uint64_t offset, uint64_t length, uint64_t weight) {
  if (length == 0) return;
  const int bits = geo().cluster_bits;
  const uint64_t last = (offset + length - 1) >> bits;
  for (uint64_t cluster = offset >> bits; cluster <= last; ++cluster) {
    if (!expected->Add(cluster, weight)) collisions->Insert(cluster);
  }
}

bool CheckState::Claim(const MetadataRegion& region, uint64_t weight) {
  if (region.length_bytes == 0) return true;
  if (IsOutside(region.offset_bytes, region.length_bytes)) return false;
  Count(region.offset_bytes, region.length_bytes, weight);
  regions.push_back(region);
  return true;
}

}  // namespace qcow2check
