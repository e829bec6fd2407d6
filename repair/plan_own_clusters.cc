// Guest clusters that share their place with others, or with metadata, get a place of their own.
//
// What the guest reads does not change; it is only no longer the same bytes. Order: the copies,
// their refcounts, the entries, and last the refcount of the cluster that was shared.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"
#include "repair/l1_slots.h"
#include "repair/metadata_doubt.h"
#include "repair/planners.h"
#include "repair/refcount_structures.h"

namespace qcow2check {
namespace {

class OwnClusterPlanner {
 public:
  OwnClusterPlanner(CheckState& state, PlanBuilder& plan)
      : state_(state),
        plan_(plan),
        geometry_(state.geo()),
        structures_(state, plan),
        places_(state),
        l1_in_doubt_(ActiveL1IsInDoubt(state)),
        snapshots_in_doubt_(SnapshotsAreInDoubt(state, plan.image())) {
    for (const L2Table& table : state.l2_tables) tables_[table.offset_bytes] = &table;
  }

  void Run();

 private:
  void SeparateGuests(const Finding& finding);
  void MoveOffMetadata(const Finding& finding);
  void SeparateTables(const Finding& finding);
  void MoveEntry(const Finding& finding, const Owner& owner, bool from_metadata);
  std::vector<uint64_t> TakeClusters(uint64_t count, uint64_t refcount, const PlanReason& reason);
  void Release(uint64_t cluster, uint64_t references) { released_[cluster] += references; }

  struct Switch {
    uint64_t place_bytes = 0;
    uint64_t entry = 0;
    PlanReason reason;
  };

  CheckState& state_;
  PlanBuilder& plan_;
  const Geometry& geometry_;
  RefcountStructures structures_;
  SoundPlaces places_;
  const bool l1_in_doubt_;
  const bool snapshots_in_doubt_;
  absl::flat_hash_map<uint64_t, const L2Table*> tables_;  // by offset
  absl::flat_hash_set<uint64_t> moved_entries_;
  absl::flat_hash_set<uint64_t> separated_tables_;
  std::vector<Switch> switches_;
  absl::btree_map<uint64_t, uint64_t> released_;  // shared cluster -> references that are gone
};

void OwnClusterPlanner::Run() {
  const PlanReason* why = nullptr;
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code == FindingCode::kDataOnMetadata) MoveOffMetadata(finding);
    if (finding.code == FindingCode::kCrossLinkedData) SeparateGuests(finding);
    if (finding.code == FindingCode::kCrossLinkedL2) SeparateTables(finding);
  }
  if (switches_.empty()) return;
  why = &switches_.front().reason;
  if (!structures_.Commit(*why)) return;
  for (const Switch& entry : switches_) plan_.Write64(entry.place_bytes, entry.entry, entry.reason);
  plan_.Flush();
  for (const auto& [cluster, references] : released_) {
    const uint64_t stored = structures_.stored_refcount(cluster);
    if (state_.expected->Get(cluster) > geometry_.refcount_max() || stored <= references) continue;
    structures_.stored().Set(cluster, 1, stored - references, *why);
  }
  plan_.Flush();
}

// Places for `count` copies, in bytes; none at all, and the finding declined, if there is no room
// for all of them.
std::vector<uint64_t> OwnClusterPlanner::TakeClusters(uint64_t count, uint64_t refcount,
                                                      const PlanReason& reason) {
  if (count > plan_.copies_left_bytes() >> geometry_.cluster_bits) {
    plan_.Decline(reason.code, reason.finding_offset,
                  "so much is shared that the copies would be larger than the image");
    return {};
  }
  FreeSpace& space = structures_.space();
  std::vector<uint64_t> places;
  for (uint64_t i = 0; i < count; ++i) {
    const std::optional<uint64_t> cluster = space.Take(1, refcount);
    if (!cluster) {
      plan_.Decline(reason.code, reason.finding_offset,
                    absl::StrFormat("%d bytes short: there is no free room for a copy",
                                    (count - i) << geometry_.cluster_bits));
      for (const uint64_t place : places) space.GiveBack(place >> geometry_.cluster_bits);
      return {};
    }
    places.push_back(*cluster << geometry_.cluster_bits);
  }
  return places;
}

void OwnClusterPlanner::MoveEntry(const Finding& finding, const Owner& owner, bool from_metadata) {
  if (owner.snapshot ? snapshots_in_doubt_ : l1_in_doubt_) return;
  if (!owner.entry_offset || !places_.MayChange(owner.entry_offset->bytes) ||
      !moved_entries_.insert(owner.entry_offset->bytes).second)
    return;
  const uint64_t size = geometry_.cluster_size();
  const auto table = tables_.find(owner.entry_offset->bytes / size * size);
  uint8_t bytes[8];
  if (table == tables_.end() || !plan_.image().ReadAt(*owner.entry_offset, bytes).ok()) return;
  const uint64_t entry = Load64(bytes);
  const uint64_t from_bytes = EntryOffset(entry);
  if (IsCompressed(entry) || !IsAligned(from_bytes, size)) return;
  const uint64_t weight = table->second->weight;
  PlanReason reason =
      ReasonFor(finding, absl::StrFormat("guest offset 0x%x gets its own copy of what it reads",
                                         owner.guest_offset.value_or(GuestOffset{}).bytes));
  const std::vector<uint64_t> place = TakeClusters(1, weight, reason);
  if (place.empty()) return;
  const uint64_t to_bytes = place.front();
  if (from_metadata) {
    plan_.CopyOriginal(from_bytes, to_bytes, size, reason);
  } else {
    plan_.CopyData(from_bytes, to_bytes, size, reason);
  }
  const bool copied = table->second->active_weight != 0 && weight == 1;
  switches_.push_back({owner.entry_offset->bytes,
                       (entry & ~(kOffsetMask | kCopiedBit)) | to_bytes | (copied ? kCopiedBit : 0),
                       std::move(reason)});
  Release(from_bytes >> geometry_.cluster_bits, weight);
}

void OwnClusterPlanner::MoveOffMetadata(const Finding& finding) {
  for (const Owner& owner : finding.owners) {
    const bool is_guest = owner.structure == Structure::kDataCluster ||
                          owner.structure == Structure::kCompressedCluster;
    if (is_guest || !IsInDoubt(state_, plan_.image(), owner, *finding.host_offset)) continue;
    plan_.Decline(finding.code, finding.host_offset,
                  absl::StrCat("what lies here may be no ", WordsOf(owner.structure), " at all"));
    return;
  }
  for (const Owner& owner : finding.owners) {
    if (owner.structure == Structure::kDataCluster) MoveEntry(finding, owner, true);
    if (owner.structure == Structure::kCompressedCluster) {
      plan_.Decline(finding.code, finding.host_offset,
                    "compressed data on metadata is left where it is");
    }
  }
}

// The first guest range stays, with all snapshots that share it; compressed clusters always stay.
void OwnClusterPlanner::SeparateGuests(const Finding& finding) {
  std::optional<GuestOffset> stays;
  for (const Owner& owner : finding.owners) {
    if (owner.structure == Structure::kCompressedCluster) stays = GuestOffset{kSaturated};
  }
  for (const Owner& owner : finding.owners) {
    if (owner.structure != Structure::kDataCluster || !owner.guest_offset) continue;
    if (!stays) stays = *owner.guest_offset;
    if (*owner.guest_offset != *stays) MoveEntry(finding, owner, false);
  }
}

// The second of two L1 slots that lead to one table gets a table and data of its own.
void OwnClusterPlanner::SeparateTables(const Finding& finding) {
  const uint64_t size = geometry_.cluster_size();
  if (!finding.l1_index || finding.owners.empty()) return;
  const uint64_t table_bytes = finding.host_offset->bytes;
  const auto table = tables_.find(table_bytes);
  if (table == tables_.end() || table->second->shape == L2Shape::kLost) return;
  if (geometry_.data_file || size > kMaxPieceBytes) {
    plan_.Decline(finding.code, finding.host_offset, "the clusters are in an external data file");
    return;
  }
  if (!separated_tables_.insert(table_bytes).second) return;  // the others after the next check
  std::vector<L1Slot> slots;
  uint64_t users = 0;
  bool active = false;
  ForEachL1SlotTo(state_, plan_, table_bytes, *finding.l1_index, [&](const L1Slot& slot) {
    const bool in_doubt = slot.active ? l1_in_doubt_ : snapshots_in_doubt_;
    if (!places_.MayChange(slot.place_bytes) || in_doubt) return;
    slots.push_back(slot);
    users += slot.users;
    active = active || slot.active;
  });
  std::vector<uint8_t> bytes(size);
  if (slots.empty() || !plan_.image().ReadAt(HostOffset{table_bytes}, absl::MakeSpan(bytes)).ok()) {
    return;
  }
  if (std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; })) {
    for (const L1Slot& slot : slots) {
      switches_.push_back(
          {slot.place_bytes, 0, ReasonFor(finding, "the table that is shared maps nothing")});
    }
    Release(table_bytes >> geometry_.cluster_bits, users);
    return;
  }
  const bool copied = active && users == 1;
  const PlanReason reason = ReasonFor(
      finding, absl::StrFormat("slot %d gets a table and clusters of its own", *finding.l1_index));
  std::vector<uint64_t> copied_entries;  // by their place in the table
  for (uint64_t at = 0; at < size; at += geometry_.l2_entry_bytes()) {
    const uint64_t entry = Load64(&bytes[at]);
    const L2EntryKind kind = KindOfL2Entry(entry, geometry_);
    if (kind != L2EntryKind::kNormal && kind != L2EntryKind::kZeroAllocated) continue;
    const uint64_t from_bytes = EntryOffset(entry);
    if (!IsAligned(from_bytes, size) || state_.IsOutside(from_bytes, size)) continue;
    copied_entries.push_back(at);
  }
  const std::vector<uint64_t> places = TakeClusters(copied_entries.size() + 1, users, reason);
  if (places.empty()) return;
  const uint64_t new_table = places.back();
  for (size_t i = 0; i < copied_entries.size(); ++i) {
    uint8_t* const at = &bytes[copied_entries[i]];
    const uint64_t entry = Load64(at);
    const uint64_t from_bytes = EntryOffset(entry);
    plan_.CopyData(from_bytes, places[i], size, reason);
    Store64(at, (entry & ~(kOffsetMask | kCopiedBit)) | places[i] | (copied ? kCopiedBit : 0));
    Release(from_bytes >> geometry_.cluster_bits, users);
  }
  plan_.Write(new_table, bytes, reason);
  for (const L1Slot& slot : slots) {
    switches_.push_back({slot.place_bytes, new_table | (copied ? kCopiedBit : 0), reason});
  }
  Release(table_bytes >> geometry_.cluster_bits, users);
}

}  // namespace

void PlanOwnClusters(CheckState& state, PlanBuilder& plan) { OwnClusterPlanner(state, plan).Run(); }

}  // namespace qcow2check
