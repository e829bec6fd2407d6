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

class TornTableSearch {
 public:
  explicit TornTableSearch(CheckState& state) : state_(state), geometry_(state.geo()) {}

  void Run(const std::vector<OrphanTable>& orphan_tables) {
    // The clusters of a data file are no neighbours of orphans.
    if (geometry_.data_file) return;
    absl::flat_hash_set<uint64_t> starts;  // of runs that are long enough
    for (const OrphanRun& run : state_.orphans) {
      if (run.clusters < kEnoughOrphans) continue;
      starts.insert(run.first_cluster << geometry_.cluster_bits);
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

  const OrphanRun* RunEndingAt(uint64_t cluster) const;
  bool IsExplained(const OrphanRun& run) const {
    return explained_.contains(run.first_cluster << geometry_.cluster_bits);
  }
  std::optional<uint64_t> ClusterOf(uint64_t entry) const;
  bool IsWholeSectors(const Gap& gap) const;
  void LookThrough(const L2Table& table, uint64_t begin_bytes, absl::Span<const uint8_t> bytes);
  void LookForLostSectors(const L2Table& table, const Gap& gap, uint64_t before, uint64_t behind);
  void LookForLostEnd(const L2Table& table, uint64_t last_entry);
  void Report(const L2Table& table, const Gap& gap, std::string detail);

  CheckState& state_;
  const Geometry& geometry_;
  absl::flat_hash_set<uint64_t> explained_;  // starts of orphans that another table has lost
};

// The one whose last cluster is the one before `cluster`.
const OrphanRun* TornTableSearch::RunEndingAt(uint64_t cluster) const {
  const auto behind = std::lower_bound(
      state_.orphans.begin(), state_.orphans.end(), cluster,
      [](const OrphanRun& run, uint64_t value) { return run.first_cluster < value; });
  if (behind == state_.orphans.begin()) return nullptr;
  const OrphanRun& run = *std::prev(behind);
  return run.first_cluster + run.clusters == cluster ? &run : nullptr;
}

// Where an entry leads that is neither compressed nor anything else than a mapping.
std::optional<uint64_t> TornTableSearch::ClusterOf(uint64_t entry) const {
  if (KindOfL2Entry(entry, geometry_) != L2EntryKind::kNormal) return std::nullopt;
  return EntryOffset(entry) >> geometry_.cluster_bits;
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
// missing ones would lead, are orphans: no more than fit, and at least half as many. If there is an
// entry before the zeros, they lie exactly between the clusters of the two.
void TornTableSearch::LookForLostSectors(const L2Table& table, const Gap& gap, uint64_t before,
                                         uint64_t behind) {
  const std::optional<uint64_t> next = ClusterOf(behind);
  const OrphanRun* run = next ? RunEndingAt(*next) : nullptr;
  if (run == nullptr || IsExplained(*run) || run->clusters < kEnoughOrphans ||
      run->clusters > gap.length() || run->clusters * 2 < gap.length()) {
    return;
  }
  const std::optional<uint64_t> previous = ClusterOf(before);
  if (gap.begin != 0 && (!previous || *previous + 1 != run->first_cluster)) return;
  Report(table, gap,
         absl::StrFormat("entries %d to %d are zero, and the %d clusters from 0x%x on are "
                         "unreferenced",
                         gap.begin, gap.end - 1, run->clusters,
                         run->first_cluster << geometry_.cluster_bits));
}

// A table that is zero behind its last entry, while the clusters that come next in the file, where
// the following entries would point, are orphans. That alone is also what a crash leaves when it
// hits a writer that fills the file to its end. So either the zeros must begin at a sector
// boundary, as when a write of the table was cut off, or clusters in use must follow the orphans:
// then the writer had gone on, and the table once knew them.
void TornTableSearch::LookForLostEnd(const L2Table& table, uint64_t last_entry) {
  const Gap gap = {uint64_t{table.last_used} + 1, geometry_.l2_entries()};
  if (gap.begin >= gap.end) return;
  const std::optional<uint64_t> cluster = ClusterOf(last_entry);
  const OrphanRun* run = cluster ? state_.OrphansFrom(*cluster + 1) : nullptr;
  if (run == nullptr || IsExplained(*run)) return;
  const bool at_sector = gap.begin * geometry_.l2_entry_bytes() % kSectorBytes == 0;
  const bool at_tail = run->first_cluster + run->clusters >= state_.file_clusters;
  if (run->clusters < (at_sector ? kEnoughOrphans : kManyOrphans) || (!at_sector && at_tail)) {
    return;
  }
  Report(table, gap,
         absl::StrFormat("from entry %d on it is zero, and the %d clusters from 0x%x on are "
                         "unreferenced",
                         gap.begin, run->clusters, run->first_cluster << geometry_.cluster_bits));
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
