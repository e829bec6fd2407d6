// L2 tables that hold something else: written over, or never written.
//
// Nothing in such a table is believed but entries that could not be there by chance: well-formed,
// leading to an orphan of their own, with the COPIED flag that its refcount asks for. Those go to
// a new table; the rest of its guest range reads as zeros, and the old cluster is kept.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
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
  SavedTable Save(uint64_t table_bytes) const;
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
  std::vector<Replacement> replacements_;
};

SavedTable LostTablePlanner::Save(uint64_t table_bytes) const {
  std::vector<uint8_t> old(geometry_.cluster_size());
  if (old.size() > kMaxPieceBytes ||
      !plan_.image().ReadAt(HostOffset{table_bytes}, absl::MakeSpan(old)).ok()) {
    return {};
  }
  const uint64_t step = geometry_.l2_entry_bytes();
  absl::flat_hash_map<uint64_t, uint64_t> claims;  // orphan -> number of entries
  const auto is_sound = [&](uint64_t at) {
    const uint64_t entry = Load64(&old[at]);
    if (KindOfL2Entry(entry, geometry_) != L2EntryKind::kNormal ||
        (entry & kStandardL2ReservedMask) != 0 || !evidence_.IsOrphan(EntryOffset(entry))) {
      return false;
    }
    const uint64_t cluster = EntryOffset(entry) >> geometry_.cluster_bits;
    return IsCopied(entry) == (structures_.stored_refcount(cluster) == 1);
  };
  for (uint64_t at = 0; at < old.size(); at += step) {
    if (is_sound(at)) ++claims[EntryOffset(Load64(&old[at]))];
  }
  SavedTable saved;
  const std::vector<uint8_t> zero = zeros_.ZeroEntryBytes();
  for (uint64_t at = 0; at < old.size(); at += step) {
    const bool keep = is_sound(at) && claims[EntryOffset(Load64(&old[at]))] == 1;
    const uint8_t* from = keep ? &old[at] : zero.data();
    saved.bytes.insert(saved.bytes.end(), from, from + step);
    saved.saved += keep ? 1 : 0;
  }
  return saved;
}

void LostTablePlanner::Plan(const LostTable& lost) {
  Replacement replacement = {.lost = lost, .saved = Save(lost.offset_bytes)};
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
      absl::StrFormat("%d entries of the old table lead to unreferenced clusters of their own and "
                      "are kept; the rest of the range reads as zeros",
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
  for (const LostTable& lost : FindLostTables(state_, plan_.image(), structures_.stored())) {
    Plan(lost);
  }
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
