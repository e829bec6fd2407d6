// The active L1 table as the header names it: its place, where the true one can be proven, and its
// size.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/table_shape.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"
#include "repair/metadata_doubt.h"
#include "repair/planners.h"
#include "repair/refcount_structures.h"
#include "repair/stored_refcounts.h"

namespace qcow2check {
namespace {

constexpr uint64_t kL1SizeField = 36;
constexpr uint64_t kL1OffsetField = 40;
// How much of the orphans is searched for a lost L1 table.
constexpr uint64_t kSearchBytes = 64u << 20;

class L1Planner {
 public:
  L1Planner(CheckState& state, PlanBuilder& plan)
      : state_(state), plan_(plan), geometry_(state.geo()) {}

  void FindTrueTable();
  void Shorten();
  void Enlarge();

 private:
  bool LooksLost() const;
  bool LiesOnOtherTable() const;
  std::vector<OrphanRun> Unreferenced() const;
  bool IsL1Table(uint64_t offset_bytes);
  bool CouldBeDamagedL1(uint64_t offset_bytes) const;
  bool EntriesFit(absl::Span<const uint8_t> table) const;
  std::optional<std::vector<uint8_t>> ReadTable(uint64_t offset_bytes, uint64_t entries) const;
  bool MayGrowInPlace(uint64_t entries) const;
  const Finding* Find(FindingCode code) const;

  CheckState& state_;
  PlanBuilder& plan_;
  const Geometry& geometry_;
};

const Finding* L1Planner::Find(FindingCode code) const {
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code == code) return &finding;
  }
  return nullptr;
}

std::optional<std::vector<uint8_t>> L1Planner::ReadTable(uint64_t offset_bytes,
                                                         uint64_t entries) const {
  if (entries > kQemuMaxL1Entries || offset_bytes + entries * 8 > state_.file.size_bytes()) {
    return std::nullopt;
  }
  std::vector<uint8_t> bytes(entries * 8);
  if (!plan_.image().ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(bytes)).ok()) {
    return std::nullopt;
  }
  return bytes;
}

// Every entry could be one, and something is mapped.
bool L1Planner::EntriesFit(absl::Span<const uint8_t> table) const {
  absl::flat_hash_set<uint64_t> targets;
  for (size_t at = 0; at < table.size(); at += 8) {
    const uint64_t entry = Load64(&table[at]);
    if (entry == 0) continue;
    const uint64_t offset = EntryOffset(entry);
    if ((entry & kL1ReservedMask) != 0 || offset == 0 ||
        !IsAligned(offset, geometry_.cluster_size()) || offset >= state_.file.size_bytes() ||
        !targets.insert(offset).second) {
      return false;
    }
  }
  return !targets.empty();
}

bool L1Planner::IsL1Table(uint64_t offset_bytes) {
  const std::optional<std::vector<uint8_t>> table = ReadTable(offset_bytes, state_.header.l1_size);
  if (!table || !EntriesFit(*table)) return false;
  // Refcount tables and bitmap directories look alike, but have no COPIED flags.
  const StoredRefcounts stored(state_, plan_);
  const bool refcounts_known = !stored.blocks().empty();
  uint64_t used = 0, proven = 0, copied = 0, agree = 0;
  for (size_t at = 0; at < table->size(); at += 8) {
    const uint64_t entry = Load64(&(*table)[at]);
    const uint64_t offset = EntryOffset(entry);
    if (offset == 0) continue;
    const bool is_proven = ProvesToBeL2Table(state_, offset, true);
    // Where a VM state was, QEMU leaves tables that map nothing. They look like refcounts, too.
    const bool fits = is_proven ? !WasRefcountBlock(state_, plan_.image(), offset)
                                : CouldBeEmptyL2Table(state_, offset);
    if (offset == offset_bytes || !fits) return false;
    ++used;
    proven += is_proven ? 1 : 0;
    copied += IsCopied(entry) ? 1 : 0;
    agree += IsCopied(entry) == (stored.Get(offset >> geometry_.cluster_bits) == 1) ? 1 : 0;
  }
  if (proven == 0) return false;
  return refcounts_known ? agree * 2 > used : copied != 0 || !state_.snapshots.empty();
}

// Something is mapped, and half of the entries in use have the form of one, wherever they lead.
bool L1Planner::CouldBeDamagedL1(uint64_t offset_bytes) const {
  const std::optional<std::vector<uint8_t>> table = ReadTable(offset_bytes, state_.header.l1_size);
  if (!table) return false;
  uint64_t used = 0, well_formed = 0;
  for (size_t at = 0; at < table->size(); at += 8) {
    const uint64_t entry = Load64(&(*table)[at]);
    if (entry == 0) continue;
    const uint64_t offset = EntryOffset(entry);
    ++used;
    well_formed +=
        (entry & kL1ReservedMask) == 0 && offset != 0 && IsAligned(offset, geometry_.cluster_size())
            ? 1
            : 0;
  }
  return used != 0 && well_formed * 2 >= used;
}

// The header's pointer is to be doubted, and what the pointers of snapshots lead to is not.
bool L1Planner::LooksLost() const {
  if (SnapshotsAreInDoubt(state_, plan_.image())) return false;
  return state_.findings.Has(FindingCode::kL1OffsetInvalid) ||
         state_.findings.Has(FindingCode::kL1Lost) || ActiveL1IsGarbage(state_) ||
         LiesOnOtherTable();
}

// It leads to no L2 table, and its cluster is one of another structure.
bool L1Planner::LiesOnOtherTable() const {
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code != FindingCode::kMetadataOverlap) continue;
    for (const Owner& owner : finding.owners) {
      if (owner.structure == Structure::kL1Table &&
          IsInDoubt(state_, plan_.image(), owner, *finding.host_offset)) {
        return true;
      }
    }
  }
  return false;
}

// Orphans; if there are no refcounts to tell them, every cluster that nothing references.
std::vector<OrphanRun> L1Planner::Unreferenced() const {
  if (!StoredRefcounts(state_, plan_).blocks().empty()) return state_.orphans;
  std::vector<OrphanRun> runs;
  for (uint64_t cluster = 1; cluster < state_.file_clusters; ++cluster) {
    if (state_.expected->Get(cluster) != 0) continue;
    if (!runs.empty() && runs.back().first_cluster + runs.back().clusters == cluster) {
      ++runs.back().clusters;
    } else {
      runs.push_back({cluster, 1, 0});
    }
  }
  return runs;
}

void L1Planner::FindTrueTable() {
  if (state_.header.l1_size == 0 || !LooksLost()) return;
  const uint64_t size = geometry_.cluster_size();
  std::vector<uint64_t> candidates, one_bit;
  bool damaged_one_bit = false;
  uint64_t left = kSearchBytes / size;
  std::vector<uint8_t> start(std::min<uint64_t>(size, 512));
  for (const OrphanRun& run : Unreferenced()) {
    for (uint64_t i = 0; i < run.clusters && left != 0; ++i, --left) {
      const uint64_t offset = (run.first_cluster + i) << geometry_.cluster_bits;
      if (!plan_.image().ReadAt(HostOffset{offset}, absl::MakeSpan(start)).ok()) continue;
      const uint64_t entries = std::min<uint64_t>(start.size() / 8, state_.header.l1_size);
      const bool empty =
          std::all_of(start.begin(), start.begin() + static_cast<int64_t>(entries * 8),
                      [](uint8_t byte) { return byte == 0; });
      const uint64_t difference = offset ^ state_.header.l1_table_offset;
      const bool is_one_bit = (difference & (difference - 1)) == 0;
      const bool fits = empty || EntriesFit(absl::MakeConstSpan(start).first(entries * 8));
      if (!fits || !IsL1Table(offset)) {
        damaged_one_bit |= is_one_bit && CouldBeDamagedL1(offset);
        continue;
      }
      candidates.push_back(offset);
      if (is_one_bit) one_bit.push_back(offset);
    }
  }
  const Finding* why = Find(FindingCode::kL1OffsetInvalid);
  if (why == nullptr) why = Find(FindingCode::kL1Lost);
  if (why == nullptr) why = Find(FindingCode::kL2TableLost);
  if (why == nullptr) why = Find(FindingCode::kL1EntryReservedBits);
  if (why == nullptr) why = Find(FindingCode::kL2TableMisaligned);
  if (why == nullptr) why = Find(FindingCode::kL2TablePastEnd);
  if (why == nullptr || candidates.empty()) return;
  if (one_bit.empty() && damaged_one_bit) {
    plan_.Decline(why->code, why->host_offset,
                  "what could be the L1 table is not one flipped bit away, and what is has entries "
                  "that cannot be right");
    return;
  }
  if (candidates.size() > 1 && one_bit.size() != 1) {
    plan_.Decline(why->code, why->host_offset,
                  absl::StrCat(candidates.size(), " unreferenced clusters could be the L1 table"));
    return;
  }
  const uint64_t found = one_bit.size() == 1 ? one_bit.front() : candidates.front();
  PlanReason reason = ReasonFor(
      *why, absl::StrFormat("the unreferenced cluster at 0x%x is the L1 table: every entry of it "
                            "leads to an L2 table",
                            found));
  reason.action = RepairAction::kRelink;
  reason.safety = RepairSafety::kLossless;
  plan_.Write64(kL1OffsetField, found, reason);
}

// A table that is longer than the disk needs, and reaches out of the file or onto other
// structures: its length in the header is wrong, not what it reaches.
void L1Planner::Shorten() {
  const uint64_t needed = geometry_.l1_entries_needed();
  if (needed == 0 || state_.header.l1_size <= needed) return;
  const uint64_t offset = state_.header.l1_table_offset;
  const int bits = geometry_.cluster_bits;
  const uint64_t end =
      std::min(offset + uint64_t{state_.header.l1_size} * 8, state_.file.size_bytes());
  bool overlaps = false;
  for (uint64_t cluster = DivideRoundingUp(offset + needed * 8, uint64_t{1} << bits);
       cluster << bits < end; ++cluster) {
    overlaps |= state_.expected->Get(cluster) > 1;
  }
  const Finding* why = Find(FindingCode::kL1OffsetInvalid);
  if (why == nullptr) why = Find(FindingCode::kL1TooLarge);
  if (why == nullptr && overlaps) why = Find(FindingCode::kMetadataOverlap);
  if (why == nullptr && overlaps) why = Find(FindingCode::kDataOnMetadata);
  if (why == nullptr) return;
  const std::optional<std::vector<uint8_t>> table = ReadTable(offset, needed);
  if (!table || !IsAligned(offset, geometry_.cluster_size()) || offset == 0) return;
  uint64_t used = 0, sound = 0;
  for (size_t at = 0; at < table->size(); at += 8) {
    if (Load64(&(*table)[at]) == 0) continue;
    ++used;
    sound += EntriesFit(absl::MakeConstSpan(*table).subspan(at, 8)) ? 1 : 0;
  }
  // Otherwise the place may be wrong, and not the length; but not if that makes no sense at all.
  const bool is_absurd = state_.header.l1_size / 8 > needed + kSectorBytes;
  if (sound * 2 < used && !is_absurd) return;
  PlanReason reason = ReasonFor(
      *why, absl::StrFormat("the disk needs %d entries; what lies behind them are none", needed));
  reason.action = RepairAction::kRewriteEntry;
  reason.safety = RepairSafety::kLossless;
  uint8_t field[4];
  Store32(field, static_cast<uint32_t>(needed));
  plan_.Write(kL1SizeField, field, reason);
}

// Whether the entries behind the table's end are free, or already those of a longer table.
bool L1Planner::MayGrowInPlace(uint64_t entries) const {
  const uint64_t begin = state_.header.l1_table_offset;
  const std::optional<std::vector<uint8_t>> table = ReadTable(begin, entries);
  const bool empty =
      table && std::all_of(table->begin(), table->end(), [](uint8_t byte) { return byte == 0; });
  if (!table || (!empty && !EntriesFit(*table))) return false;
  const uint64_t first = begin >> geometry_.cluster_bits;
  const uint64_t last = (begin + entries * 8 - 1) >> geometry_.cluster_bits;
  const uint64_t old_last =
      (begin + std::max<uint64_t>(state_.header.l1_size, 1) * 8 - 1) >> geometry_.cluster_bits;
  for (uint64_t cluster = first; cluster <= last; ++cluster) {
    const uint64_t references = state_.expected->Get(cluster);
    // Behind its own last cluster, only what nobody else uses and what is counted as used.
    const bool orphan = std::any_of(
        state_.orphans.begin(), state_.orphans.end(),
        [cluster](const OrphanRun& run) { return cluster - run.first_cluster < run.clusters; });
    if (cluster <= old_last ? references > 1 : !orphan) return false;
  }
  return true;
}

void L1Planner::Enlarge() {
  const Finding* why = Find(FindingCode::kL1TooSmall);
  if (why == nullptr || state_.findings.Has(FindingCode::kL1OffsetInvalid)) return;
  const uint64_t needed = geometry_.l1_entries_needed();
  if (needed > kQemuMaxL1Entries) {
    plan_.Decline(why->code, why->host_offset,
                  "no program opens a disk of this size: the size field was probably damaged");
    return;
  }
  PlanReason reason = ReasonFor(
      *why, absl::StrFormat("the disk needs %d entries; the new ones map nothing", needed));
  reason.action = RepairAction::kRewriteEntry;
  reason.safety = RepairSafety::kLossless;
  uint8_t fields[12];
  Store32(fields, static_cast<uint32_t>(needed));
  if (state_.header.l1_size != 0 && MayGrowInPlace(needed)) {
    plan_.Write(kL1SizeField, absl::MakeConstSpan(fields, 4), reason);
    return;
  }
  std::optional<std::vector<uint8_t>> table =
      ReadTable(state_.header.l1_table_offset, state_.header.l1_size);
  if (!table) return;
  RefcountStructures structures(state_, plan_);
  const uint64_t clusters = DivideRoundingUp(needed * 8, geometry_.cluster_size());
  const std::optional<uint64_t> first = structures.space().Take(clusters);
  if (!first) {
    plan_.Decline(why->code, why->host_offset, "there is no free room for a larger table");
    return;
  }
  table->resize(clusters << geometry_.cluster_bits);
  plan_.Write(*first << geometry_.cluster_bits, *table, reason);
  if (!structures.Commit(reason)) return;
  // Size and place lie in one sector: they change together.
  Store64(fields + 4, *first << geometry_.cluster_bits);
  plan_.Write(kL1SizeField, fields, reason);
  plan_.Flush();
  const uint64_t old_end = state_.header.l1_table_offset + uint64_t{state_.header.l1_size} * 8;
  structures.Free(state_.header.l1_table_offset, old_end, reason);
}

}  // namespace

void PlanL1Table(CheckState& state, PlanBuilder& plan) {
  L1Planner planner(state, plan);
  const uint64_t before = plan.writes();
  planner.Shorten();
  if (plan.writes() == before) planner.FindTrueTable();
  if (plan.writes() == before) planner.Enlarge();
}

}  // namespace qcow2check
