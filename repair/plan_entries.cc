// L1 and L2 entries: what is proven is set right, what is beyond proof reads as zeros.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "checker/lost_pointers.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"
#include "repair/compressed_evidence.h"
#include "repair/found_entry.h"
#include "repair/l1_slots.h"
#include "repair/lost_tables.h"
#include "repair/metadata_doubt.h"
#include "repair/orphan_evidence.h"
#include "repair/planners.h"
#include "repair/shared_evidence.h"
#include "repair/stored_refcounts.h"
#include "repair/zero_entries.h"

namespace qcow2check {
namespace {

class EntryPlanner {
 public:
  EntryPlanner(CheckState& state, PlanBuilder& plan)
      : state_(state),
        plan_(plan),
        geometry_(state.geo()),
        stored_(state, plan),
        evidence_(state, plan, stored_),
        shared_(state, plan, stored_),
        compressed_(state, stored_, plan.was_cut_off()),
        places_(state),
        l1_in_doubt_(ActiveL1IsInDoubt(state)),
        snapshots_in_doubt_(SnapshotsInDoubt(state, plan.image())) {
    for (const L2Table& table : state.l2_tables) weight_at_[table.offset_bytes] = table.weight;
  }

  void PlanProven();
  void PlanLost();

 private:
  template <typename Visit>
  void ForEachEntry(const Finding& finding, Visit visit, bool relinks_only = false) const;
  void FixL1Target(const FoundEntry& at);
  void FixL1Flags(const FoundEntry& at);
  void FixL2Target(const FoundEntry& at);
  void FixL2Flags(const FoundEntry& at);
  static EntryAt EvidenceAt(const FoundEntry& at) {
    return {at.place_bytes, at.l2_index, at.entry, !at.finding.snapshot.has_value()};
  }
  std::optional<Explanation> ExplainData(const EntryAt& at) const;
  bool IsSoundZeroEntry(uint64_t entry) const;
  void FixMisalignedData(const FoundEntry& at);
  void FixCompressed(const FoundEntry& at);
  void Relink(const FoundEntry& at, const std::optional<Explanation>& explanation);
  void RelinkCompressed(const FoundEntry& at, uint64_t entry) {
    const uint64_t data_bytes = DecodeCompressed(entry, geometry_.cluster_bits).offset_bytes;
    compressed_relinks_[data_bytes].try_emplace(at.place_bytes, at, entry);
  }
  void RelinkCollision(const Finding& finding);
  void RelinkZeroSlot();
  void RelinkLostTable(const LostTable& lost, bool certain);
  bool OnlyOrphanTableMaps(uint64_t cluster_bytes) const;
  bool IsInDoubtWithItsSnapshot(const std::optional<uint64_t>& snapshot) const {
    return snapshot && snapshots_in_doubt_.contains(*snapshot);
  }
  bool PointsIntoFile(uint64_t entry) const {
    const uint64_t offset = EntryOffset(entry);
    return offset != 0 && IsAligned(offset, geometry_.cluster_size()) &&
           offset < state_.file.size_bytes();
  }
  uint64_t WeightOf(const FoundEntry& at) const {
    const uint64_t table = at.place_bytes & ~(geometry_.cluster_size() - 1);
    const auto found = weight_at_.find(table);
    return found == weight_at_.end() ? 1 : found->second;
  }
  bool BelongsToThisEntryAlone(const FoundEntry& at, uint64_t offset) const {
    const uint64_t cluster = offset >> geometry_.cluster_bits;
    return cluster < state_.file_clusters && state_.expected->Get(cluster) == WeightOf(at);
  }
  void Set(const FoundEntry& at, uint64_t entry, std::string text,
           std::optional<RepairAction> action = std::nullopt) {
    PlanReason reason = ReasonFor(at.finding, std::move(text));
    reason.finding_offset = HostOffset{at.place_bytes};
    reason.safety = RepairSafety::kLossless;
    if (action) reason.action = *action;
    plan_.Write64(at.place_bytes, entry, reason);
  }

  CheckState& state_;
  PlanBuilder& plan_;
  const Geometry& geometry_;
  StoredRefcounts stored_;
  OrphanEvidence evidence_;
  SharedEvidence shared_;
  CompressedEvidence compressed_;
  SoundPlaces places_;
  const bool l1_in_doubt_;
  const absl::flat_hash_set<uint64_t> snapshots_in_doubt_;
  absl::flat_hash_set<uint64_t> decided_;              // places of entries
  absl::flat_hash_map<uint64_t, uint64_t> weight_at_;  // L2 table offset -> weight
  absl::btree_map<uint64_t, std::vector<std::pair<FoundEntry, Explanation>>> relinks_;  // by orphan
  // By where the data is, and by the place of the entry, with what it should be.
  absl::btree_map<uint64_t, absl::btree_map<uint64_t, std::pair<FoundEntry, uint64_t>>>
      compressed_relinks_;
};

template <typename Visit>
void EntryPlanner::ForEachEntry(const Finding& finding, Visit visit, bool relinks_only) const {
  if (!finding.host_offset || IsInDoubtWithItsSnapshot(finding.snapshot)) return;
  const bool is_l1 = IsL1(finding);
  const uint64_t step = is_l1 ? 8 : geometry_.l2_entry_bytes();
  const uint64_t guest_step = is_l1 ? geometry_.l2_guest_bytes() : geometry_.cluster_size();
  std::vector<uint8_t> bytes(16);
  for (uint64_t i = 0; i * step < finding.length_bytes; ++i) {
    const uint64_t place = finding.host_offset->bytes + i * step;
    if (!plan_.image().ReadAt(HostOffset{place}, absl::MakeSpan(bytes).first(step)).ok()) continue;
    const uint64_t guest = finding.guest_offset ? finding.guest_offset->bytes + i * guest_step : 0;
    if (!places_.MayChange(place)) continue;
    // What lies behind the entries that the disk needs may be no entry.
    if (finding.structure == Structure::kL1Table &&
        finding.l1_index.value_or(0) + i >= geometry_.l1_entries_needed()) {
      continue;
    }
    // Nor is what is reached through an L1 table that may be none.
    const bool only_relinks = relinks_only && finding.structure == Structure::kL1Table;
    if (l1_in_doubt_ && !finding.snapshot && !only_relinks) continue;
    visit(FoundEntry{finding, place, finding.l2_index.value_or(0) + i, Load64(bytes.data()),
                     step == 16 ? Load64(&bytes[8]) : 0, GuestOffset{guest}, is_l1});
  }
}

void EntryPlanner::Relink(const FoundEntry& at, const std::optional<Explanation>& explanation) {
  if (explanation) relinks_[explanation->offset_bytes].push_back({at, *explanation});
}

// Where an entry leads is decided first; what else is wrong with the same entry goes with it.
void EntryPlanner::PlanProven() {
  for (const Finding& finding : state_.findings.findings()) {
    if (IsAboutTarget(finding.code)) {
      ForEachEntry(
          finding,
          [this](const FoundEntry& at) {
            if (!decided_.insert(at.place_bytes).second) return;
            at.is_l1 ? FixL1Target(at) : FixL2Target(at);
          },
          true);
    }
    if (IsAboutCollision(finding.code) ||
        (IsAboutTooFew(finding.code) && finding.structure == Structure::kCompressedCluster)) {
      RelinkCollision(finding);
    }
    if (finding.code == FindingCode::kL2TableLost && finding.confidence != Confidence::kCertain) {
      RelinkLostTable({&finding, finding.host_offset->bytes, finding.l1_index.value_or(0)}, false);
    }
  }
  for (const LostTable& lost : FindLostTables(state_, plan_.image(), stored_)) {
    RelinkLostTable(lost, true);
  }
  for (const Finding& finding : state_.findings.findings()) {
    if (!IsAboutFlags(finding.code)) continue;
    ForEachEntry(finding, [this](const FoundEntry& at) {
      if (!decided_.insert(at.place_bytes).second) return;
      at.is_l1 ? FixL1Flags(at) : FixL2Flags(at);
    });
  }
  RelinkZeroSlot();
  // An orphan that two entries claim is explained by neither.
  for (const auto& [offset, claims] : compressed_relinks_) {
    if (claims.size() != 1) continue;
    const auto& [at, entry] = claims.begin()->second;
    Set(at, entry, "one flipped bit away from compressed data that decompresses",
        RepairAction::kRelink);
  }
  for (const auto& [offset, claims] : relinks_) {
    if (claims.size() != 1) continue;
    const auto& [at, explanation] = claims.front();
    const bool active = !at.finding.snapshot.has_value();
    const uint64_t copied =
        active ? (explanation.refcount_is_one ? kCopiedBit : 0) : at.entry & kCopiedBit;
    const uint64_t zero_flag = !at.is_l1 && IsSoundZeroEntry(at.entry) && !IsCompressed(at.entry)
                                   ? at.entry & kZeroBit
                                   : 0;
    Set(at, offset | copied | zero_flag, explanation.evidence, RepairAction::kRelink);
  }
}

void EntryPlanner::FixL1Flags(const FoundEntry& at) {
  const uint64_t offset = EntryOffset(at.entry);
  if (offset != 0 && (!PointsIntoFile(at.entry) || IsLostTable(state_, offset))) return;
  Set(at, offset == 0 ? 0 : at.entry & ~kL1ReservedMask, "the reserved bits are cleared");
}

void EntryPlanner::FixL1Target(const FoundEntry& at) {
  if (at.finding.code == FindingCode::kL2TableMisaligned && at.finding.expected) {
    const uint64_t offset = EntryOffset(at.entry) & ~(geometry_.cluster_size() - 1);
    Set(at, offset | (at.entry & kCopiedBit),
        absl::StrFormat("the cluster at 0x%x is beyond doubt the L2 table", offset),
        RepairAction::kRelink);
    return;
  }
  const std::optional<Explanation> explanation = evidence_.ForL1Entry(at.entry);
  Relink(at, explanation);
  if (!explanation && !l1_in_doubt_ && at.finding.code == FindingCode::kL1EntryWithoutOffset &&
      evidence_.tables().empty()) {
    Set(at, 0, "flags without an offset mean nothing");
  }
}

void EntryPlanner::FixL2Flags(const FoundEntry& at) {
  switch (at.finding.code) {
    case FindingCode::kL2EntryReservedBits:
      Set(at, at.entry & ~kStandardL2ReservedMask, "the reserved bits are cleared");
      return;
    case FindingCode::kZeroFlagNotAllowed:
      Set(at, at.entry & ~kZeroBit & ~kStandardL2ReservedMask, "version 2 has no zero flag");
      return;
    case FindingCode::kSubclusterConflict: {
      const SubclusterBitmap bitmap = DecodeSubclusterBitmap(at.bitmap_word);
      const uint64_t zeros = bitmap.reads_as_zeros & ~bitmap.allocated;
      PlanReason reason = ReasonFor(at.finding, "what is in the cluster counts");
      reason.finding_offset = HostOffset{at.place_bytes};
      plan_.Write64(at.place_bytes + 8, zeros << 32 | bitmap.allocated, reason);
      if (!at.finding.snapshot) plan_.AddLostRange(at.guest.bytes, geometry_.cluster_size());
      return;
    }
    default:
      FixCompressed(at);
  }
}

void EntryPlanner::FixL2Target(const FoundEntry& at) {
  switch (at.finding.code) {
    case FindingCode::kZeroClusterMisaligned:
    case FindingCode::kZeroClusterPastEnd:
      if (IsSoundZeroEntry(at.entry)) {
        Set(at, geometry_.extended_l2 ? 0 : kZeroBit, "the range reads as zeros as before");
        return;
      }
      break;
    case FindingCode::kDataMisaligned:
      return FixMisalignedData(at);
    case FindingCode::kCompressedPastEnd:
      if (const std::optional<uint64_t> entry = compressed_.AsLongAsItsData(at.entry)) {
        Set(at, *entry, "the data decompresses, and is shorter than the entry says",
            RepairAction::kRewriteEntry);
        return;
      }
      if (const std::optional<uint64_t> entry = compressed_.OneBitAway(at.entry)) {
        RelinkCompressed(at, *entry);
        return;
      }
      break;
    default:
      break;
  }
  Relink(at, ExplainData(EvidenceAt(at)));
}

// Nothing if an orphan explains the entry as well as a cluster that others share, or if it may lead
// to what was cut off: the other reference to what is shared may have been cut off, too.
std::optional<Explanation> EntryPlanner::ExplainData(const EntryAt& at) const {
  const bool may_be_cut_off =
      IsCompressed(at.entry) ? plan_.was_cut_off() : evidence_.WasCutOff(EntryOffset(at.entry));
  if (may_be_cut_off) return evidence_.ForDataEntry(at);
  std::optional<Explanation> orphan = evidence_.ForDataEntry(at);
  std::optional<Explanation> shared = shared_.ForDataEntry(at);
  if (orphan && shared) return std::nullopt;
  return orphan ? orphan : shared;
}

// A zero flag among other bits that cannot be right is no zero flag.
bool EntryPlanner::IsSoundZeroEntry(uint64_t entry) const {
  return geometry_.version >= 3 && (entry & kStandardL2ReservedMask) == 0;
}

void EntryPlanner::FixMisalignedData(const FoundEntry& at) {
  if (geometry_.data_file) {
    Set(at, at.guest.bytes | kCopiedBit, "in a data file, a cluster lies at its guest offset",
        RepairAction::kRelink);
    return;
  }
  const uint64_t compressed = at.entry | kCompressedBit;
  const uint64_t first = DecodeCompressed(compressed, geometry_.cluster_bits).offset_bytes;
  if (!IsCopied(at.entry) && state_.compressed->Contains(first >> geometry_.cluster_bits) &&
      compressed_.Decompresses(compressed)) {
    Set(at, compressed,
        "with the flag that says compressed, one flipped bit away, it leads to "
        "compressed data that decompresses",
        RepairAction::kRelink);
    return;
  }
  const uint64_t rounded = EntryOffset(at.entry) & ~(geometry_.cluster_size() - 1);
  const uint64_t cluster = rounded >> geometry_.cluster_bits;
  const bool counted = cluster < state_.file_clusters && stored_.Get(cluster) != 0 &&
                       (BelongsToThisEntryAlone(at, rounded) ||
                        stored_.Get(cluster) >= state_.expected->Get(cluster));
  if (rounded != 0 && counted) {
    Set(at, (at.entry & ~kOffsetMask & ~kStandardL2ReservedMask) | rounded,
        absl::StrFormat("the refcount of the cluster at 0x%x counts this entry", rounded),
        RepairAction::kRelink);
    return;
  }
  Relink(at, ExplainData(EvidenceAt(at)));
}

// COPIED, or a subcluster bitmap, on a compressed entry: either that is too much, or the flag that
// says "compressed" is. The data tells.
void EntryPlanner::FixCompressed(const FoundEntry& at) {
  const uint64_t standard = at.entry & ~kCompressedBit;
  const bool fits_standard = (standard & kStandardL2ReservedMask) == 0 && PointsIntoFile(standard);
  if (fits_standard && !compressed_.Decompresses(at.entry) &&
      (BelongsToThisEntryAlone(at, EntryOffset(standard)) ||
       evidence_.IsOrphan(EntryOffset(standard)))) {
    Set(at, standard, "what it points to is no compressed data, and a whole cluster of its own");
    return;
  }
  if (at.finding.code == FindingCode::kCompressedCopied) {
    Set(at, at.entry & ~kCopiedBit, "a compressed cluster has no COPIED flag");
    return;
  }
  PlanReason reason = ReasonFor(at.finding, "a compressed cluster has no subclusters");
  reason.finding_offset = HostOffset{at.place_bytes};
  plan_.Write64(at.place_bytes + 8, 0, reason);
}

// Of several users of one cluster, the one whose neighbours agree on an orphan is the one whose
// pointer was damaged, and so is the one that leads to no compressed data but is one bit away from
// some. Metadata that is what it should be is never the damaged one. Where only a refcount is too
// low, nothing says that two use the cluster but the compressed data that is missed elsewhere.
void EntryPlanner::RelinkCollision(const Finding& finding) {
  std::vector<std::pair<FoundEntry, Explanation>> explained;
  std::vector<std::pair<FoundEntry, uint64_t>> compressed;  // with the entry that it should be
  const bool collides =
      finding.code == FindingCode::kCrossLinkedData || finding.code == FindingCode::kDataOnMetadata;
  for (const Owner& owner : finding.owners) {
    const bool is_guest = owner.structure == Structure::kDataCluster ||
                          owner.structure == Structure::kCompressedCluster;
    if (!is_guest && IsInDoubt(state_, plan_.image(), owner, *finding.host_offset)) return;
  }
  for (const Owner& owner : finding.owners) {
    uint8_t bytes[8];
    if (!owner.entry_offset || !places_.MayChange(owner.entry_offset->bytes) ||
        !plan_.image().ReadAt(*owner.entry_offset, bytes).ok()) {
      continue;
    }
    const FoundEntry found{finding,
                           owner.entry_offset->bytes,
                           owner.l2_index.value_or(0),
                           Load64(bytes),
                           0,
                           owner.guest_offset.value_or(GuestOffset{})};
    if (owner.structure == Structure::kCompressedCluster && IsCompressed(found.entry)) {
      const std::optional<uint64_t> entry = compressed_.OneBitAway(found.entry);
      if (entry) compressed.push_back({found, *entry});
    }
    if (owner.structure != Structure::kDataCluster || !collides) continue;
    const EntryAt at = {found.place_bytes, found.l2_index, found.entry,
                        !owner.snapshot.has_value()};
    const bool on_metadata = finding.code == FindingCode::kDataOnMetadata;
    std::optional<Explanation> explanation =
        on_metadata ? ExplainData(at) : evidence_.FromBothNeighbours(at);
    if (!explanation && !on_metadata) explanation = shared_.ForDataEntry(at);
    if (explanation) explained.push_back({found, *explanation});
  }
  if (explained.size() + compressed.size() != 1) return;
  if (!explained.empty()) return Relink(explained.front().first, explained.front().second);
  RelinkCompressed(compressed.front().first, compressed.front().second);
}

// An L2 table that nothing references, not one damaged pointer, given up or left, and one
// slot of the L1 table that leads nowhere: it led there.
void EntryPlanner::RelinkZeroSlot() {
  if (evidence_.tables().size() != 1 || plan_.gives_up_evidence() || state_.orphans_explained ||
      HasLostPointers(state_) || state_.counted_too_low || !state_.coverage.complete() ||
      !evidence_.snapshots_are_known()) {
    return;
  }
  const uint64_t needed = geometry_.l1_entries_needed();
  if (needed == 0 || state_.active_l1.size() + 1 != needed || needed > state_.header.l1_size) {
    return;
  }
  uint64_t slot = 0;
  while (slot < state_.active_l1.size() && state_.active_l1[slot].l1_index == slot) ++slot;
  const uint64_t table = evidence_.tables().front();
  if (!places_.MayChange(state_.header.l1_table_offset + slot * 8)) return;
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code != FindingCode::kOrphanL2Table) continue;
    const bool one = stored_.Get(table >> geometry_.cluster_bits) == 1;
    PlanReason reason = ReasonFor(
        finding, absl::StrFormat("slot %d of the L1 table is the only one that leads nowhere, and "
                                 "this the only unreferenced L2 table",
                                 slot));
    plan_.Write64(state_.header.l1_table_offset + slot * 8, table | (one ? kCopiedBit : 0), reason);
  }
}

// The table may be lost, or only the pointer to it. A cluster that the only unreferenced L2 table
// maps as data is no table.
void EntryPlanner::RelinkLostTable(const LostTable& lost, bool certain) {
  if (state_.findings.Has(FindingCode::kL1Lost)) return;
  if (!certain && (!evidence_.snapshots_are_known() || !OnlyOrphanTableMaps(lost.offset_bytes))) {
    return;
  }
  ForEachL1SlotTo(state_, plan_, lost.offset_bytes, lost.l1_index, [&](const L1Slot& slot) {
    if (!slot.active || !places_.MayChange(slot.place_bytes)) return;
    std::optional<Explanation> explanation = evidence_.ForL1Entry(slot.entry);
    if (!explanation && !certain) {
      const uint64_t found = evidence_.tables().front();
      explanation = {
          found, stored_.Get(found >> geometry_.cluster_bits) == 1,
          absl::StrFormat("it leads to data of the unreferenced L2 table at 0x%x", found)};
    }
    Relink(FoundEntry{*lost.finding, slot.place_bytes, 0, slot.entry, 0, GuestOffset{}, true},
           explanation);
  });
}

bool EntryPlanner::OnlyOrphanTableMaps(uint64_t cluster_bytes) const {
  if (evidence_.tables().size() != 1) return false;
  std::vector<uint8_t> bytes(std::min(geometry_.cluster_size(), kMaxPieceBytes));
  const HostOffset table = {evidence_.tables().front()};
  if (!plan_.image().ReadAt(table, absl::MakeSpan(bytes)).ok()) return false;
  for (uint64_t at = 0; at < bytes.size(); at += geometry_.l2_entry_bytes()) {
    const uint64_t entry = Load64(&bytes[at]);
    if (!IsCompressed(entry) && EntryOffset(entry) == cluster_bytes) return true;
  }
  return false;
}

void EntryPlanner::PlanLost() {
  if (state_.findings.Has(FindingCode::kL1Lost)) return;
  ZeroEntries zeros(state_, plan_);
  for (const Finding& finding : state_.findings.findings()) {
    switch (finding.code) {
      case FindingCode::kL2TablePastEnd:
      case FindingCode::kL2TableMisaligned:
      case FindingCode::kL1EntryWithoutOffset:
        ForEachEntry(finding,
                     [&](const FoundEntry& at) { zeros.AddL1(finding, at.place_bytes, at.guest); });
        break;
      case FindingCode::kDataPastEnd:
      case FindingCode::kDataMisaligned:
      case FindingCode::kZeroClusterPastEnd:
      case FindingCode::kZeroClusterMisaligned:
      case FindingCode::kCompressedPastEnd:
        ForEachEntry(finding,
                     [&](const FoundEntry& at) { zeros.AddL2(finding, at.place_bytes, at.guest); });
        break;
      case FindingCode::kSubclusterWithoutCluster:
        ForEachEntry(finding, [&](const FoundEntry& at) {
          zeros.AddSubclusters(finding, at.place_bytes, at.guest, at.bitmap_word);
        });
        break;
      default:
        break;
    }
  }
  zeros.Commit();
}

}  // namespace

void PlanProvenEntries(CheckState& state, PlanBuilder& plan) {
  EntryPlanner(state, plan).PlanProven();
}

void PlanLostEntries(CheckState& state, PlanBuilder& plan) {
  plan.FlushBeforeLoss();
  EntryPlanner(state, plan).PlanLost();
}

}  // namespace qcow2check
