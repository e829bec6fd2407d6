// L2 tables that hold something else: written over, or never written.
//
// Nothing in such a table is believed but entries that could not be there by chance: well-formed,
// leading to clusters that count one reference more than there is, with the COPIED flag that the
// refcount asks for. A cluster that something else uses must be a snapshot's, at the same place of
// the guest. Those go to a new table; the rest of its guest range reads as zeros, and the old
// cluster is kept.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"
#include "repair/l1_slots.h"
#include "repair/lost_tables.h"
#include "repair/metadata_doubt.h"
#include "repair/orphan_evidence.h"
#include "repair/planners.h"
#include "repair/refcount_structures.h"
#include "repair/zero_entries.h"

namespace qcow2check {
namespace {

// Each snapshot may have a table of its own for a range, and each of them may be lost.
constexpr size_t kMostTablesCompared = 64;

// What stays of a lost table.
struct SavedTable {
  std::vector<uint8_t> bytes;  // a whole new table; empty if nothing could be saved
  uint64_t saved = 0;
};

class LostTablePlanner {
 public:
  LostTablePlanner(CheckState& state, PlanBuilder& plan)
      : state_(state),
        plan_(plan),
        geometry_(state.geo()),
        structures_(state, plan),
        evidence_(state, plan, structures_.stored()),
        places_(state),
        snapshots_in_doubt_(SnapshotsAreInDoubt(state, plan.image())),
        zeros_(state, plan) {}

  void Run();

 private:
  struct Replacement {
    LostTable lost;
    SavedTable saved;
    uint64_t cluster = 0;
    std::vector<L1Slot> slots;
    uint64_t users = 0;
  };

  void Plan(const LostTable& lost);
  void FindMappingsOf(const std::vector<LostTable>& lost_tables);
  uint64_t MissingReferences(uint64_t cluster) const;
  std::vector<uint64_t> ClaimsOf(uint64_t entry) const;
  absl::flat_hash_set<uint64_t> SharedWithSnapshots(const LostTable& lost,
                                                    absl::Span<const uint8_t> old) const;
  SavedTable Save(const LostTable& lost) const;
  void AddLostRanges(const Replacement& replacement);
  void Switch(const Replacement& replacement);

  CheckState& state_;
  PlanBuilder& plan_;
  const Geometry& geometry_;
  RefcountStructures structures_;
  OrphanEvidence evidence_;
  SoundPlaces places_;
  const bool snapshots_in_doubt_;
  ZeroEntries zeros_;
  // Tables with mappings for the ranges of lost tables, by l1_index, if there are snapshots.
  absl::flat_hash_map<uint64_t, std::vector<const L2Table*>> mappings_of_;
  std::vector<Replacement> replacements_;
};

uint64_t LostTablePlanner::MissingReferences(uint64_t cluster) const {
  const uint64_t stored = structures_.stored_refcount(cluster);
  return stored - std::min(stored, state_.expected->Get(cluster));
}

// The clusters that an entry of a lost table leads to, if it may have been one: nothing of it
// speaks against that. Empty otherwise, and if it leads nowhere.
std::vector<uint64_t> LostTablePlanner::ClaimsOf(uint64_t entry) const {
  std::vector<uint64_t> clusters;
  switch (KindOfL2Entry(entry, geometry_)) {
    case L2EntryKind::kNormal: {
      const uint64_t offset = EntryOffset(entry);
      const bool fits = (entry & kStandardL2ReservedMask) == 0 &&
                        IsAligned(offset, geometry_.cluster_size()) &&
                        !state_.IsOutside(offset, geometry_.cluster_size());
      if (fits) clusters.push_back(offset >> geometry_.cluster_bits);
      break;
    }
    case L2EntryKind::kCompressed: {
      const CompressedRange range = DecodeCompressed(entry, geometry_.cluster_bits);
      if (IsCopied(entry) || state_.IsOutside(range.offset_bytes, range.length_bytes)) break;
      const uint64_t last = (range.end_bytes() - 1) >> geometry_.cluster_bits;
      for (uint64_t i = range.offset_bytes >> geometry_.cluster_bits; i <= last; ++i) {
        clusters.push_back(i);
      }
      break;
    }
    default:
      break;
  }
  const bool misses_all = std::all_of(clusters.begin(), clusters.end(), [&](uint64_t cluster) {
    return MissingReferences(cluster) != 0;
  });
  return misses_all ? clusters : std::vector<uint64_t>();
}

void LostTablePlanner::FindMappingsOf(const std::vector<LostTable>& lost_tables) {
  if (state_.snapshots.empty()) return;
  for (const LostTable& lost : lost_tables) mappings_of_[lost.l1_index];
  for (const L2Table& table : state_.l2_tables) {
    if (table.shape != L2Shape::kMappings) continue;
    const auto found = mappings_of_.find(table.l1_index);
    if (found == mappings_of_.end() || found->second.size() == kMostTablesCompared) continue;
    found->second.push_back(&table);
  }
}

// Places in the lost table whose entry leads where that of a snapshot leads, too. Of many other
// tables for the same range some will do: what the others share is still in the snapshots.
absl::flat_hash_set<uint64_t> LostTablePlanner::SharedWithSnapshots(
    const LostTable& lost, absl::Span<const uint8_t> old) const {
  absl::flat_hash_set<uint64_t> shared;
  const auto tables = mappings_of_.find(lost.l1_index);
  if (tables == mappings_of_.end()) return shared;
  std::vector<uint8_t> bytes(old.size());
  for (const L2Table* table : tables->second) {
    if (table->offset_bytes == lost.offset_bytes || !state_.MayGoOn() ||
        !plan_.image().ReadAt(HostOffset{table->offset_bytes}, absl::MakeSpan(bytes)).ok()) {
      continue;
    }
    for (uint64_t at = 0; at < old.size(); at += geometry_.l2_entry_bytes()) {
      const uint64_t entry = Load64(&old[at]), other = Load64(&bytes[at]);
      if (EntryOffset(entry) != 0 && ((entry ^ other) & ~kCopiedBit) == 0) shared.insert(at);
    }
  }
  return shared;
}

SavedTable LostTablePlanner::Save(const LostTable& lost) const {
  std::vector<uint8_t> old(geometry_.cluster_size());
  if (old.size() > kMaxPieceBytes ||
      !plan_.image().ReadAt(HostOffset{lost.offset_bytes}, absl::MakeSpan(old)).ok()) {
    return {};
  }
  const uint64_t step = geometry_.l2_entry_bytes();
  const absl::flat_hash_set<uint64_t> shared = SharedWithSnapshots(lost, old);
  absl::flat_hash_map<uint64_t, uint64_t> claims;  // cluster -> number of entries
  for (uint64_t at = 0; at < old.size(); at += step) {
    for (const uint64_t cluster : ClaimsOf(Load64(&old[at]))) ++claims[cluster];
  }
  const auto is_sound = [&](uint64_t at) {
    const uint64_t entry = Load64(&old[at]);
    const std::vector<uint64_t> clusters = ClaimsOf(entry);
    if (clusters.empty()) return false;
    if (IsCompressed(entry)) {
      return std::all_of(clusters.begin(), clusters.end(), [&](uint64_t cluster) {
        return claims[cluster] <= MissingReferences(cluster);
      });
    }
    return claims[clusters.front()] == 1 &&
           IsCopied(entry) == (structures_.stored_refcount(clusters.front()) == 1) &&
           (evidence_.IsOrphan(EntryOffset(entry)) || shared.contains(at));
  };
  SavedTable saved;
  const std::vector<uint8_t> zero = zeros_.ZeroEntryBytes();
  for (uint64_t at = 0; at < old.size(); at += step) {
    const bool keep = is_sound(at);
    const uint8_t* from = keep ? &old[at] : zero.data();
    saved.bytes.insert(saved.bytes.end(), from, from + step);
    saved.saved += keep ? 1 : 0;
  }
  return saved;
}

void LostTablePlanner::Plan(const LostTable& lost) {
  Replacement replacement = {.lost = lost, .saved = Save(lost)};
  ForEachL1SlotTo(state_, plan_, lost.offset_bytes, lost.l1_index, [&](const L1Slot& slot) {
    // A table on its own L1 table: what overlaps there is this pointer itself.
    const bool on_itself =
        slot.place_bytes >> geometry_.cluster_bits == lost.offset_bytes >> geometry_.cluster_bits;
    if (!slot.active && snapshots_in_doubt_) return;
    const bool needed = !slot.active || slot.l1_index < geometry_.l1_entries_needed();
    if (!needed || (!places_.MayChange(slot.place_bytes) && !on_itself)) return;
    replacement.slots.push_back(slot);
    replacement.users += slot.users;
  });
  if (replacement.slots.empty()) return;
  if (replacement.saved.saved == 0) {
    for (const L1Slot& slot : replacement.slots) {
      Finding finding = *lost.finding;
      if (slot.active) finding.snapshot = std::nullopt;
      zeros_.AddL1(finding, slot.place_bytes, geometry_.GuestOffsetOf(slot.l1_index, 0));
    }
    return;
  }
  if (zeros_.NeedsCluster()) {
    plan_.Decline(lost.finding->code, lost.finding->host_offset,
                  "a part of the table can be saved, but version 2 has no zero flag to hide the "
                  "backing file in the rest");
    return;
  }
  const std::optional<uint64_t> cluster = structures_.space().Take(1, replacement.users);
  if (!cluster) {
    plan_.Decline(lost.finding->code, lost.finding->host_offset,
                  "there is no free room for a new table");
    return;
  }
  replacement.cluster = *cluster;
  replacements_.push_back(std::move(replacement));
}

void LostTablePlanner::AddLostRanges(const Replacement& replacement) {
  const uint64_t step = geometry_.l2_entry_bytes();
  for (uint64_t at = 0; at < replacement.saved.bytes.size(); at += step) {
    const uint64_t entry = Load64(&replacement.saved.bytes[at]);
    if (EntryOffset(entry) != 0) continue;
    plan_.AddLostRange(geometry_.GuestOffsetOf(replacement.lost.l1_index, at / step).bytes,
                       geometry_.cluster_size());
  }
}

void LostTablePlanner::Switch(const Replacement& replacement) {
  PlanReason reason = ReasonFor(
      *replacement.lost.finding,
      absl::StrFormat("%d entries of the old table lead to clusters whose refcounts tell of them "
                      "and are kept; the rest of the range reads as zeros",
                      replacement.saved.saved));
  reason.action = RepairAction::kRewriteEntry;
  reason.safety = RepairSafety::kLossy;
  const uint64_t offset = replacement.cluster << geometry_.cluster_bits;
  for (const L1Slot& slot : replacement.slots) {
    const bool copied = slot.active && replacement.users == 1;
    plan_.Write64(slot.place_bytes, offset | (copied ? kCopiedBit : 0), reason);
    if (slot.active) AddLostRanges(replacement);
  }
}

void LostTablePlanner::Run() {
  if (state_.findings.Has(FindingCode::kL1Lost) || ActiveL1IsInDoubt(state_)) return;
  const std::vector<LostTable> lost_tables =
      FindLostTables(state_, plan_.image(), structures_.stored());
  FindMappingsOf(lost_tables);
  for (const LostTable& lost : lost_tables) Plan(lost);
  // New tables and zeroed slots each bring their refcounts: one after the other.
  if (replacements_.empty()) {
    zeros_.Commit();
    return;
  }
  for (const Replacement& replacement : replacements_) {
    plan_.Write(replacement.cluster << geometry_.cluster_bits, replacement.saved.bytes,
                ReasonFor(*replacement.lost.finding, "what can be proven of the lost table"));
  }
  if (!structures_.Commit(ReasonFor(*replacements_.front().lost.finding, "for new tables"))) {
    return;
  }
  for (const Replacement& replacement : replacements_) Switch(replacement);
  plan_.Flush();
}

}  // namespace

void PlanLostTables(CheckState& state, PlanBuilder& plan) {
  plan.FlushBeforeLoss();
  LostTablePlanner(state, plan).Run();
}

}  // namespace qcow2check
