// The orphan pass: what are the clusters that are counted as used but that nothing references?
//
// Needs everything before it. Most leaks are waste from a crash. But if a table was lost, its
// clusters look just the same, and freeing them destroys the only copy. This pass looks for signs
// of a loss (tables without mappings, torn tables, orphans that are L2 tables, damaged pointers,
// parts that could not be examined), reports the losses, pairs damaged pointers with the orphan
// that explains them, and then says of all orphans whether they are waste or must be kept.
//
// Reads a bounded part of the orphans, and nothing if there are none.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checker/check_state.h"
#include "checker/cluster_size_guess.h"
#include "checker/lost_pointers.h"
#include "checker/orphan_tables.h"
#include "checker/torn_tables.h"
#include "common/byte_order.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

// Orphans that make an L2 table without mappings suspicious: few if they lie just where the
// table's data would, otherwise as many as a crash does not leave.
constexpr uint64_t kFewOrphans = 8;
constexpr uint64_t kManyOrphans = 100;

class OrphanJudge {
 public:
  explicit OrphanJudge(CheckState& state)
      : state_(state), geometry_(state.geo()), orphans_(state.file_clusters) {}

  void Run() {
    SetStaleBitmapsAside();
    ReportTruncation();
    ReportSuspectClusterSize(state_);
    if (state_.orphans.empty() && state_.too_high->empty()) return;
    orphan_tables_ = FindOrphanTables(state_, orphans_);
    // These prove nothing, but what they map is no waste.
    has_damaged_tables_ =
        std::erase_if(orphan_tables_, [](const OrphanTable& table) { return table.damaged; }) != 0;
    FindLostSnapshotTable();
    // A table that cannot be read looks empty, and is not.
    if (!state_.findings.Has(FindingCode::kUnreadable)) {
      FindLostL1Entries();
      FindLostL1();
      FindLostL2Tables();
      ReportTornL2Tables(state_, orphan_tables_);
    }
    ReportOrphanL2Tables();
    PairOrphans();
    ReportOrphans();
  }

 private:
  void SetStaleBitmapsAside();
  void AddLeak(FindingCode code, const OrphanRun& run, std::string detail);
  void ReportTruncation();
  void FindLostSnapshotTable();
  void FindLostL1Entries();
  void FindLostL1();
  void FindLostL2Tables();
  void ReportOrphanL2Tables();
  std::optional<uint64_t> OneBitAway(uint64_t target) const;
  std::optional<uint64_t> BehindNeighbour(HostOffset place, uint64_t l2_index);
  void PairOrphans();
  bool LiesInHole(uint64_t cluster_bytes) const;
  bool MayBeWiped(const L2Table& table) const;
  bool HasTableOfZeros() const;
  std::string WhyHeldBack() const;
  void ReportOrphans();
  bool IsOrphan(uint64_t cluster) const {
    return cluster < state_.file_clusters && orphans_.Contains(cluster);
  }

  CheckState& state_;
  const Geometry& geometry_;
  ClusterSet orphans_;
  std::vector<OrphanTable> orphan_tables_;
  bool has_damaged_tables_ = false;
  bool snapshot_table_lost_ = false;
  uint64_t lost_l1_entries_ = 0;
};

// What is known to be waste is no sign of a loss.
void OrphanJudge::SetStaleBitmapsAside() {
  std::vector<OrphanRun> others;
  for (const OrphanRun& run : state_.orphans) {
    uint64_t begin = 0;
    for (uint64_t i = 0; i <= run.clusters; ++i) {
      const uint64_t cluster = run.first_cluster + i;
      const bool stale =
          i < run.clusters && state_.stale_bitmaps && state_.stale_bitmaps->Get(cluster) != 0;
      if (i < run.clusters && !stale) {
        orphans_.Insert(cluster);
        continue;
      }
      if (begin < i) others.push_back({run.first_cluster + begin, i - begin, run.stored});
      if (stale) {
        AddLeak(FindingCode::kLeakedCluster, {cluster, 1, run.stored},
                "bitmaps that are out of date");
        --state_.orphan_clusters;
      }
      begin = i + 1;
    }
  }
  state_.orphans = std::move(others);
}

void OrphanJudge::AddLeak(FindingCode code, const OrphanRun& run, std::string detail) {
  state_.findings.Add({.code = code,
                       .structure = Structure::kDataCluster,
                       .host_offset = geometry_.OffsetOf({run.first_cluster}),
                       .length_bytes = run.clusters << geometry_.cluster_bits,
                       .clusters = run.clusters,
                       .count = run.clusters,
                       .stored = run.stored,
                       .expected = 0,
                       .detail = std::move(detail)});
}

void OrphanJudge::ReportTruncation() {
  const FindingList& findings = state_.findings;
  const uint64_t pointers = findings.CountOf(FindingCode::kDataPastEnd) +
                            findings.CountOf(FindingCode::kL2TablePastEnd) +
                            findings.CountOf(FindingCode::kCompressedPastEnd);
  const bool l1_gone = findings.Has(FindingCode::kL1OffsetInvalid) &&
                       state_.header.l1_table_offset >= state_.file.size_bytes();
  // Refcounts behind the end say that the file once was longer.
  const bool counted = state_.stored_past_end_in_use != 0 ||
                       (l1_gone && findings.Has(FindingCode::kRefcountPastEnd));
  if (!counted && pointers < kFewOrphans) return;
  if (!counted && state_.orphan_clusters != 0) return;
  state_.findings.Add(
      {.code = FindingCode::kFileTruncated,
       .structure = Structure::kImage,
       .host_offset = HostOffset{state_.file.size_bytes()},
       .confidence = Confidence::kProbable,
       .detail = absl::StrFormat("it ends at 0x%x; %d pointers lead behind it, and %d clusters "
                                 "there have a refcount",
                                 state_.file.size_bytes(), pointers + (l1_gone ? 1 : 0),
                                 state_.stored_past_end_in_use +
                                     findings.TotalOf(FindingCode::kRefcountPastEnd).clusters)});
}

// The header says that there are no snapshots, but their table is still there.
void OrphanJudge::FindLostSnapshotTable() {
  const uint64_t offset = state_.header.snapshots_offset;
  if (state_.header.nb_snapshots != 0 || offset == 0 ||
      !IsAligned(offset, geometry_.cluster_size()) || !IsOrphan(offset >> geometry_.cluster_bits)) {
    return;
  }
  std::vector<uint8_t> fixed(kSnapshotFixedBytes);
  state_.Read(HostOffset{offset}, absl::MakeSpan(fixed), Structure::kSnapshotTable);
  const SnapshotEntry entry = DecodeSnapshotFixed(fixed, offset);
  if (entry.l1_size == 0 || !IsAligned(entry.l1_table_offset, geometry_.cluster_size()) ||
      !IsOrphan(entry.l1_table_offset >> geometry_.cluster_bits)) {
    return;
  }
  snapshot_table_lost_ = true;
  state_.findings.Add({.code = FindingCode::kSnapshotTableInvalid,
                       .structure = Structure::kSnapshotTable,
                       .host_offset = HostOffset{offset},
                       .stored = 0,
                       .confidence = Confidence::kProbable,
                       .detail = "the header says that there are no snapshots, but an "
                                 "unreferenced snapshot table is there"});
}

// L2 tables that snapshots share say with their own refcounts how many entries led to them. One
// that is too high where an L1 table has a hole may have been meant there; not if others are too
// high, too, which no hole explains: that is what making a snapshot leaves when it is cut short.
void OrphanJudge::FindLostL1Entries() {
  std::vector<const L2Table*> too_high;
  absl::flat_hash_map<uint64_t, uint64_t> entries;  // that are used, by slot
  for (const L2Table& table : state_.l2_tables) {
    entries[table.l1_index] += table.weight;
    const uint64_t cluster = table.offset_bytes >> geometry_.cluster_bits;
    if (cluster < state_.file_clusters && state_.too_high->Contains(cluster)) {
      too_high.push_back(&table);
    }
  }
  std::vector<uint64_t> lengths;  // of all L1 tables
  for (const L1Table& table : state_.l1_tables) {
    for (const L1User& user : table.users) lengths.push_back(user.entries);
  }
  std::sort(lengths.begin(), lengths.end());
  const auto has_hole = [&](const L2Table* table) {
    const auto shorter = std::upper_bound(lengths.begin(), lengths.end(), table->l1_index);
    return entries[table->l1_index] < static_cast<uint64_t>(lengths.end() - shorter);
  };
  if (!std::all_of(too_high.begin(), too_high.end(), has_hole)) return;
  for (const L2Table* table : too_high) {
    ++lost_l1_entries_;
    state_.findings.Add({.code = FindingCode::kL1EntryLost,
                         .structure = Structure::kL2Table,
                         .host_offset = HostOffset{table->offset_bytes},
                         .length_bytes = geometry_.cluster_size(),
                         .clusters = 1,
                         .guest_offset = geometry_.GuestOffsetOf(table->l1_index, 0),
                         .guest_length_bytes = geometry_.l2_guest_bytes(),
                         .l1_index = table->l1_index,
                         .snapshot = table->snapshot,
                         .confidence = Confidence::kProbable,
                         .detail = table->active_weight == 0
                                       ? "a snapshot leads here, the disk does not"
                                       : "the disk leads here, a snapshot does not"});
  }
}

void OrphanJudge::FindLostL1() {
  if (state_.findings.Has(FindingCode::kL1OffsetInvalid) || state_.header.l1_size == 0 ||
      (state_.orphan_clusters < kFewOrphans && lost_l1_entries_ == 0)) {
    return;
  }
  uint64_t tables = 0, lost = 0;
  for (const L2Table& table : state_.l2_tables) {
    if (table.active_weight == 0) continue;
    ++tables;
    lost += table.shape == L2Shape::kLost ? 1 : 0;
    if (table.shape == L2Shape::kMappings) return;
  }
  // Tables that map nothing are each judged on their own, and so is one that was lost alone.
  if (tables != lost || (!state_.active_l1.empty() && lost == 0)) return;
  if (lost == 1 && orphan_tables_.empty()) return;
  state_.findings.Add(
      {.code = FindingCode::kL1Lost,
       .structure = Structure::kL1Table,
       .host_offset = HostOffset{state_.header.l1_table_offset},
       .length_bytes = uint64_t{state_.header.l1_size} * 8,
       .guest_offset = GuestOffset{0},
       .guest_length_bytes = state_.header.size,
       .confidence = Confidence::kProbable,
       .detail =
           lost == 0
               ? absl::StrFormat("all %d entries are 0; %d clusters are unreferenced, and %d "
                                 "L2 tables are counted more often than referenced",
                                 state_.header.l1_size, state_.orphan_clusters, lost_l1_entries_)
               : absl::StrFormat("none of the %d places it points to is an L2 table; %d "
                                 "clusters are unreferenced",
                                 lost, state_.orphan_clusters)});
}

// In whole blocks of a file system, which cannot have smaller holes.
bool OrphanJudge::LiesInHole(uint64_t cluster_bytes) const {
  constexpr uint64_t kBlockBytes = 4096;
  const uint64_t end = std::min(RoundUp(cluster_bytes + geometry_.cluster_size(), kBlockBytes),
                                state_.file.size_bytes());
  const HostOffset begin{cluster_bytes / kBlockBytes * kBlockBytes};
  return state_.file.NextData(begin).begin_bytes >= end;
}

// A guest's discards leave tables of zero entries, which nothing else looks like but a block of
// refcounts of 64 bits. Behind the end of the disk there is nothing to lose.
bool OrphanJudge::MayBeWiped(const L2Table& table) const {
  constexpr int kOrderOf64Bits = 6;
  if (!table.snapshot &&
      geometry_.GuestOffsetOf(table.l1_index, 0).bytes >= geometry_.virtual_size_bytes) {
    return false;
  }
  return table.shape == L2Shape::kNoMappings ||
         (table.shape == L2Shape::kZeros && geometry_.refcount_order == kOrderOf64Bits);
}

void OrphanJudge::FindLostL2Tables() {
  absl::flat_hash_set<uint64_t> without_mappings;
  for (const L2Table& table : state_.l2_tables) {
    if (MayBeWiped(table)) without_mappings.insert(table.offset_bytes);
  }
  if (without_mappings.empty()) return;
  const absl::flat_hash_set<uint64_t> mapped_as_data =
      MappedAsData(state_, orphan_tables_, without_mappings);
  // Otherwise unreferenced tables may be those of snapshots.
  const bool snapshots_damaged = state_.findings.Has(FindingCode::kSnapshotTableInvalid) ||
                                 state_.findings.Has(FindingCode::kSnapshotL1Invalid) ||
                                 state_.findings.Has(FindingCode::kSnapshotSizeMismatch);
  const uint64_t many = std::min(kManyOrphans, geometry_.l2_entries() / 2);
  for (const L2Table& table : state_.l2_tables) {
    if (!without_mappings.contains(table.offset_bytes)) continue;
    const uint64_t cluster = table.offset_bytes >> geometry_.cluster_bits;
    const OrphanRun* behind = state_.OrphansFrom(cluster + 1);
    const bool adjacent = behind != nullptr && behind->clusters >= kFewOrphans;
    const bool only_one =
        without_mappings.size() == 1 && state_.orphan_clusters >= many && !state_.orphans_explained;
    const bool is_data = !snapshots_damaged && mapped_as_data.contains(table.offset_bytes);
    const bool in_hole = state_.orphan_clusters >= kFewOrphans && LiesInHole(table.offset_bytes);
    if (!is_data && !adjacent && !only_one && !in_hole) continue;
    state_.findings.Add(
        {.code = FindingCode::kL2TableLost,
         .structure = Structure::kL2Table,
         .host_offset = HostOffset{table.offset_bytes},
         .length_bytes = geometry_.cluster_size(),
         .clusters = 1,
         .guest_offset = geometry_.GuestOffsetOf(table.l1_index, 0),
         .guest_length_bytes = geometry_.l2_guest_bytes(),
         .l1_index = table.l1_index,
         .snapshot = table.snapshot,
         .confidence = Confidence::kProbable,
         .detail = is_data
                       ? absl::StrFormat("the cluster at 0x%x maps nothing, and an unreferenced L2 "
                                         "table maps it as guest data",
                                         table.offset_bytes)
                       : absl::StrFormat("the cluster at 0x%x maps nothing, and %d unreferenced "
                                         "clusters fit it",
                                         table.offset_bytes,
                                         adjacent ? behind->clusters : state_.orphan_clusters)});
  }
}

// Tables that nothing references any more: L1 entries were lost. If findings about those entries,
// or about the whole L1 table, add to the total already, the tables do not count once more.
void OrphanJudge::ReportOrphanL2Tables() {
  const uint64_t count = HasLostPointers(state_) ? 0 : 1;
  absl::flat_hash_set<uint64_t> deleted;
  if (count != 0) deleted = TablesOfDeletedSnapshots(state_, orphan_tables_);
  for (const OrphanTable& table : orphan_tables_) {
    if (deleted.contains(table.offset_bytes)) continue;
    state_.findings.Add(
        {.code = FindingCode::kOrphanL2Table,
         .structure = Structure::kL2Table,
         .host_offset = HostOffset{table.offset_bytes},
         .length_bytes = geometry_.cluster_size(),
         .clusters = 1,
         .count = count,
         .confidence = Confidence::kProbable,
         .detail = absl::StrFormat("the cluster at 0x%x maps %d clusters%s", table.offset_bytes,
                                   table.mapped_clusters,
                                   table.copied ? ""
                                                : "; none has the COPIED flag, so it may be a "
                                                  "snapshot's, or the table of a bitmap")});
  }
}

// The only orphan whose address differs from `target` in one bit.
std::optional<uint64_t> OrphanJudge::OneBitAway(uint64_t target) const {
  std::optional<uint64_t> found;
  for (int bit = 9; bit < 56; ++bit) {
    const uint64_t candidate = target ^ (uint64_t{1} << bit);
    if (!IsAligned(candidate, geometry_.cluster_size()) ||
        !IsOrphan(candidate >> geometry_.cluster_bits)) {
      continue;
    }
    if (found) return std::nullopt;
    found = candidate;
  }
  return found;
}

// The orphan that follows the cluster of the L2 entry before the one at `place`: guests are mostly
// written in order, so that is where the entry pointed before it was damaged.
std::optional<uint64_t> OrphanJudge::BehindNeighbour(HostOffset place, uint64_t l2_index) {
  if (l2_index == 0) return std::nullopt;
  std::vector<uint8_t> bytes(8);
  state_.Read(HostOffset{place.bytes - geometry_.l2_entry_bytes()}, absl::MakeSpan(bytes),
              Structure::kL2Table);
  const uint64_t entry = Load64(bytes.data());
  if (KindOfL2Entry(entry, geometry_) != L2EntryKind::kNormal) return std::nullopt;
  const uint64_t candidate = EntryOffset(entry) + geometry_.cluster_size();
  return IsOrphan(candidate >> geometry_.cluster_bits) ? std::optional(candidate) : std::nullopt;
}

void OrphanJudge::PairOrphans() {
  const auto is_data_pointer = [](FindingCode code) {
    return code == FindingCode::kDataPastEnd || code == FindingCode::kCrossLinkedData ||
           code == FindingCode::kDataOnMetadata;
  };
  uint64_t damaged = 0;
  for (const Finding& finding : state_.findings.findings()) {
    if (is_data_pointer(finding.code)) damaged += finding.clusters;
  }
  for (Finding& finding : state_.findings.findings()) {
    std::optional<uint64_t> orphan;
    if (finding.code == FindingCode::kL2TablePastEnd) {
      if (orphan_tables_.size() == 1) orphan = orphan_tables_.front().offset_bytes;
    } else if (is_data_pointer(finding.code) && finding.clusters == 1) {
      if (finding.l2_index) orphan = BehindNeighbour(*finding.host_offset, *finding.l2_index);
      for (const Owner& owner : finding.owners) {
        if (orphan || !owner.entry_offset || !owner.l2_index) continue;
        orphan = BehindNeighbour(*owner.entry_offset, *owner.l2_index);
      }
      if (!orphan) orphan = OneBitAway(finding.target.value_or(*finding.host_offset).bytes);
      if (!orphan && damaged == 1 && state_.orphan_clusters == 1) {
        orphan = state_.orphans.front().first_cluster << geometry_.cluster_bits;
      }
    }
    if (!orphan) continue;
    finding.expected = *orphan;
    absl::StrAppend(
        &finding.detail, finding.detail.empty() ? "" : "; ",
        absl::StrFormat("the unreferenced cluster at 0x%x is probably the missing one", *orphan));
  }
}

// A table is made when its first entry is: one without any may have been wiped.
bool OrphanJudge::HasTableOfZeros() const {
  return std::any_of(state_.l2_tables.begin(), state_.l2_tables.end(), [](const L2Table& table) {
    return table.shape == L2Shape::kNoMappings && table.last_used == 0;
  });
}

std::string OrphanJudge::WhyHeldBack() const {
  std::vector<std::string> reasons;
  if (state_.findings.Has(FindingCode::kL1Lost)) reasons.push_back("the L1 table was lost");
  if (state_.findings.Has(FindingCode::kL2TableLost) ||
      state_.findings.Has(FindingCode::kL2TableTorn)) {
    reasons.push_back("an L2 table was lost");
  }
  if (!orphan_tables_.empty()) reasons.push_back("some of them are L2 tables");
  if (has_damaged_tables_) reasons.push_back("some of them look like damaged L2 tables");
  if (lost_l1_entries_ != 0) reasons.push_back("an L1 entry was lost");
  if (reasons.empty() && HasTableOfZeros()) reasons.push_back("an L2 table holds only zeros");
  if (snapshot_table_lost_) reasons.push_back("some of them are snapshots");
  if (HasOrphansOfManyEntries(state_)) {
    reasons.push_back("some of them held the compressed data of many entries");
  }
  if (state_.counted_too_low) {
    reasons.push_back("clusters elsewhere are counted less often than they are referenced");
  }
  if (state_.kept_by_repair) reasons.push_back("an earlier repair kept them");
  if (reasons.empty() && HasLostPointers(state_)) reasons.push_back("pointers were damaged");
  if (reasons.empty() && (!state_.coverage.complete() || !state_.MayGoOn())) {
    reasons.push_back("a part of the image could not be examined");
  }
  return absl::StrJoin(reasons, ", ");
}

void OrphanJudge::ReportOrphans() {
  const std::string why = WhyHeldBack();
  const uint64_t end = state_.file_clusters;
  for (const OrphanRun& run : state_.orphans) {
    std::string detail = why;
    if (why.empty() && run.first_cluster + run.clusters == end) detail = "at the end of the file";
    AddLeak(why.empty() ? FindingCode::kLeakedCluster : FindingCode::kLeakSuspicious, run,
            std::move(detail));
  }
  if (why.empty()) return;
  uint64_t clusters = state_.orphan_clusters;
  // What was lost may be in clusters that others use, too.
  state_.too_high->ForEach([&clusters](uint64_t) { ++clusters; });
  state_.held_back = {clusters, clusters << geometry_.cluster_bits, clusters != 0 ? why : ""};
}

}  // namespace

void ClassifyOrphans(CheckState& state) { OrphanJudge(state).Run(); }

}  // namespace qcow2check
