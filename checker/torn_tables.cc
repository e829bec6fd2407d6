#include "checker/torn_tables.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "checker/table_reader.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

// Fewer orphans side by side are what any crash leaves.
constexpr uint64_t kEnoughOrphans = 8;
// Orphans behind the last cluster of a table that ends within a sector: more than one request of
// a guest usually allocates.
constexpr uint64_t kManyOrphans = 32;

// Consecutive clusters that are counted more often than they are referenced: orphans, and what a
// snapshot shares. A refcount block may lie between them, which QEMU puts where it needs one.
struct LostRun {
  uint64_t first = 0;
  uint64_t end = 0;
  uint64_t clusters = 0;
  bool orphans = true;  // all of them
};

class TornTableSearch {
 public:
  explicit TornTableSearch(CheckState& state) : state_(state), geometry_(state.geo()) {}

  void Run(const std::vector<OrphanTable>& orphan_tables) {
    // The clusters of a data file are no neighbours of orphans.
    if (geometry_.data_file) return;
    FindRuns();
    absl::flat_hash_set<uint64_t> starts;  // of runs that are long enough
    for (const LostRun& run : runs_) {
      if (run.clusters < kEnoughOrphans) continue;
      starts.insert(run.first << geometry_.cluster_bits);
    }
    if (starts.empty()) return;
    explained_ = MappedAsData(state_, orphan_tables, starts);
    for (const OrphanTable& table : orphan_tables) explained_.insert(table.offset_bytes);
    ReadAllTables(state_, [this](const L2Table& table, uint64_t begin_bytes,
                                 absl::Span<const uint8_t> bytes) {
      if (table.shape == L2Shape::kMappings) LookThrough(table, begin_bytes, bytes);
    });
  }

 private:
  // Entries [begin, end) of a table, all 0.
  struct Gap {
    uint64_t begin = 0;
    uint64_t end = 0;
    uint64_t length() const { return end - begin; }
  };

  // Clusters that an entry leads to.
  struct Target {
    uint64_t first = 0;
    uint64_t last = 0;
    bool compressed = false;
  };

  void FindRuns();
  void AddToRuns(const LostRun& next);
  const LostRun* RunFrom(uint64_t cluster) const;
  const LostRun* RunEndingAt(uint64_t cluster) const;
  std::string WordsOf(const LostRun& run) const;
  bool IsExplained(const LostRun& run) const {
    return explained_.contains(run.first << geometry_.cluster_bits);
  }
  bool IsBlock(uint64_t cluster) const { return blocks_.contains(cluster); }
  std::optional<Target> TargetOf(uint64_t entry) const;
  const LostRun* RunBehind(const Target& target) const;
  const LostRun* RunBefore(const Target& target) const;
  bool IsWholeSectors(const Gap& gap) const;
  void LookThrough(const L2Table& table, uint64_t begin_bytes, absl::Span<const uint8_t> bytes);
  void LookForLostSectors(const L2Table& table, const Gap& gap, uint64_t before, uint64_t behind);
  void LookForLostEnd(const L2Table& table, uint64_t last_entry);
  void Report(const L2Table& table, const Gap& gap, std::string detail);

  CheckState& state_;
  const Geometry& geometry_;
  std::vector<LostRun> runs_;
  absl::flat_hash_set<uint64_t> blocks_;     // clusters of refcount blocks
  absl::flat_hash_set<uint64_t> explained_;  // starts of runs that another table has lost
};

void TornTableSearch::FindRuns() {
  for (const RefcountBlock& block : state_.refcount_blocks) {
    blocks_.insert(block.offset_bytes >> geometry_.cluster_bits);
  }
  size_t next = 0;
  const auto add_orphans_before = [&](uint64_t cluster) {
    for (; next < state_.orphans.size() && state_.orphans[next].first_cluster < cluster; ++next) {
      const OrphanRun& run = state_.orphans[next];
      AddToRuns({run.first_cluster, run.first_cluster + run.clusters, run.clusters, true});
    }
  };
  state_.too_high->ForEach([&](uint64_t cluster) {
    add_orphans_before(cluster);
    AddToRuns({cluster, cluster + 1, 1, false});
  });
  add_orphans_before(kSaturated);
}

// In ascending order. Those that are too short are not kept: there may be millions.
void TornTableSearch::AddToRuns(const LostRun& next) {
  uint64_t behind = runs_.empty() ? 0 : runs_.back().end;
  while (behind < next.first && IsBlock(behind)) ++behind;
  if (!runs_.empty() && behind == next.first) {
    runs_.back().end = next.end;
    runs_.back().clusters += next.clusters;
    runs_.back().orphans &= next.orphans;
    return;
  }
  if (!runs_.empty() && runs_.back().clusters < kEnoughOrphans) runs_.pop_back();
  runs_.push_back(next);
}

// The one that begins at `cluster`, or behind refcount blocks there.
const LostRun* TornTableSearch::RunFrom(uint64_t cluster) const {
  while (IsBlock(cluster)) ++cluster;
  const auto found =
      std::lower_bound(runs_.begin(), runs_.end(), cluster,
                       [](const LostRun& run, uint64_t value) { return run.first < value; });
  return found != runs_.end() && found->first == cluster ? &*found : nullptr;
}

// The one that ends before `cluster`, or before refcount blocks there.
const LostRun* TornTableSearch::RunEndingAt(uint64_t cluster) const {
  while (cluster > 0 && IsBlock(cluster - 1)) --cluster;
  const auto behind =
      std::lower_bound(runs_.begin(), runs_.end(), cluster,
                       [](const LostRun& run, uint64_t value) { return run.first < value; });
  if (behind == runs_.begin()) return nullptr;
  const LostRun& run = *std::prev(behind);
  return run.end == cluster ? &run : nullptr;
}

std::string TornTableSearch::WordsOf(const LostRun& run) const {
  return absl::StrFormat("the %d clusters from 0x%x on are %s", run.clusters,
                         run.first << geometry_.cluster_bits,
                         run.orphans ? "unreferenced" : "counted more often than referenced");
}

// Where an entry leads that is a mapping.
std::optional<TornTableSearch::Target> TornTableSearch::TargetOf(uint64_t entry) const {
  switch (KindOfL2Entry(entry, geometry_)) {
    case L2EntryKind::kNormal: {
      const uint64_t cluster = EntryOffset(entry) >> geometry_.cluster_bits;
      return Target{cluster, cluster, false};
    }
    case L2EntryKind::kCompressed: {
      const CompressedRange range = DecodeCompressed(entry, geometry_.cluster_bits);
      return Target{range.offset_bytes >> geometry_.cluster_bits,
                    (range.end_bytes() - 1) >> geometry_.cluster_bits, true};
    }
    default:
      return std::nullopt;
  }
}

// A cluster that compressed data shares with what is lost belongs to both.
const LostRun* TornTableSearch::RunBehind(const Target& target) const {
  const LostRun* run = RunFrom(target.last + 1);
  return run == nullptr && target.compressed ? RunFrom(target.last) : run;
}

const LostRun* TornTableSearch::RunBefore(const Target& target) const {
  const LostRun* run = RunEndingAt(target.first);
  return run == nullptr && target.compressed ? RunEndingAt(target.first + 1) : run;
}

bool TornTableSearch::IsWholeSectors(const Gap& gap) const {
  const uint64_t step = geometry_.l2_entry_bytes();
  return gap.length() != 0 && gap.begin * step % kSectorBytes == 0 &&
         gap.end * step % kSectorBytes == 0;
}

// A slice of a table. What lies between two slices (of clusters that QEMU does not make, of more
// than 2 MiB) is not found.
void TornTableSearch::LookThrough(const L2Table& table, uint64_t begin_bytes,
                                  absl::Span<const uint8_t> bytes) {
  const uint64_t step = geometry_.l2_entry_bytes();
  Gap gap = {.begin = begin_bytes / step};
  uint64_t before = 0;  // the entry before the gap
  for (uint64_t at = 0; at < bytes.size(); at += step) {
    const uint64_t entry = Load64(&bytes[at]);
    const uint64_t bitmap_word = geometry_.extended_l2 ? Load64(&bytes[at + 8]) : 0;
    if (entry == 0 && bitmap_word == 0) continue;
    gap.end = (begin_bytes + at) / step;
    if (IsWholeSectors(gap)) LookForLostSectors(table, gap, before, entry);
    if (gap.end == table.last_used) LookForLostEnd(table, entry);
    gap.begin = gap.end + 1;
    before = entry;
  }
}

// Whole sectors of zeros before an entry, while right before the cluster of that entry, where the
// missing ones would lead, are clusters that nothing explains: no more than fit, and at least half
// as many, or more than a crash leaves. If there is an entry before the zeros, they lie exactly
// between the clusters of the two.
void TornTableSearch::LookForLostSectors(const L2Table& table, const Gap& gap, uint64_t before,
                                         uint64_t behind) {
  const std::optional<Target> next = TargetOf(behind);
  const LostRun* run = next ? RunBefore(*next) : nullptr;
  if (run == nullptr || IsExplained(*run) || run->clusters < kEnoughOrphans) return;
  // Compressed data of many entries may be in few clusters, and share those on both sides.
  const bool fits = next->compressed
                        ? run->clusters <= gap.length() + 2
                        : run->clusters <= gap.length() &&
                              (run->clusters * 2 >= gap.length() || run->clusters >= kManyOrphans);
  if (!fits) return;
  const std::optional<Target> previous = TargetOf(before);
  if (gap.begin != 0 && (!previous || RunBehind(*previous) != run)) return;
  Report(
      table, gap,
      absl::StrFormat("entries %d to %d are zero, and %s", gap.begin, gap.end - 1, WordsOf(*run)));
}

// A table that is zero behind its last entry, while the clusters that come next in the file, where
// the following entries would point, are explained by nothing. That alone is also what a crash
// leaves when it hits a writer that fills the file to its end. So either the zeros must begin at a
// sector boundary, as when a write of the table was cut off, or clusters in use must follow: then
// the writer had gone on, and the table once knew them.
void TornTableSearch::LookForLostEnd(const L2Table& table, uint64_t last_entry) {
  const Gap gap = {uint64_t{table.last_used} + 1, geometry_.l2_entries()};
  if (gap.begin >= gap.end) return;
  const std::optional<Target> target = TargetOf(last_entry);
  const LostRun* run = target ? RunBehind(*target) : nullptr;
  if (run == nullptr || IsExplained(*run)) return;
  const bool at_sector = gap.begin * geometry_.l2_entry_bytes() % kSectorBytes == 0;
  const bool at_tail = run->end >= state_.file_clusters;
  if (run->clusters < (at_sector ? kEnoughOrphans : kManyOrphans) || (!at_sector && at_tail)) {
    return;
  }
  Report(table, gap,
         absl::StrFormat("from entry %d on it is zero, and %s", gap.begin, WordsOf(*run)));
}

void TornTableSearch::Report(const L2Table& table, const Gap& gap, std::string detail) {
  const uint64_t step = geometry_.l2_entry_bytes();
  state_.findings.Add({.code = FindingCode::kL2TableTorn,
                       .structure = Structure::kL2Table,
                       .host_offset = HostOffset{table.offset_bytes + gap.begin * step},
                       .length_bytes = gap.length() * step,
                       .clusters = 1,
                       .guest_offset = geometry_.GuestOffsetOf(table.l1_index, gap.begin),
                       .guest_length_bytes = gap.length() << geometry_.cluster_bits,
                       .l1_index = table.l1_index,
                       .l2_index = gap.begin,
                       .snapshot = table.snapshot,
                       .confidence = Confidence::kProbable,
                       .detail = std::move(detail)});
}

}  // namespace

void ReportTornL2Tables(CheckState& state, const std::vector<OrphanTable>& orphan_tables) {
  TornTableSearch(state).Run(orphan_tables);
}

}  // namespace qcow2check
