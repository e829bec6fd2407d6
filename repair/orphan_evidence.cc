#include "repair/orphan_evidence.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "checker/old_refcounts.h"
#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "common/table_entry.h"
#include "repair/lost_tables.h"
#include "repair/metadata_doubt.h"

namespace qcow2check {
namespace {

// How far away the next entry in use may be.
constexpr uint64_t kNeighbourReach = 512;

bool IsDamagedL1Entry(const Finding& finding) {
  switch (finding.code) {
    case FindingCode::kL1EntryWithoutOffset:
    case FindingCode::kL2TablePastEnd:
    case FindingCode::kCrossLinkedL2:
      return true;
    case FindingCode::kL2TableMisaligned:
      return !finding.expected.has_value();
    default:
      return false;
  }
}

bool IsDamagedL2Entry(FindingCode code) {
  return code == FindingCode::kDataPastEnd || code == FindingCode::kDataMisaligned ||
         code == FindingCode::kSubclusterWithoutCluster ||
         code == FindingCode::kCompressedPastEnd || code == FindingCode::kCrossLinkedData ||
         code == FindingCode::kDataOnMetadata;
}

}  // namespace

OrphanEvidence::OrphanEvidence(const CheckState& state, const PlanBuilder& plan,
                               const StoredRefcounts& stored)
    : state_(state),
      plan_(plan),
      stored_(stored),
      snapshots_are_known_(!SnapshotsAreInDoubt(state, plan.image())),
      orphans_(state.file_clusters) {
  for (const OrphanRun& run : state.orphans) {
    for (uint64_t i = 0; i < run.clusters; ++i) orphans_.Insert(run.first_cluster + i);
  }
  for (const Finding& finding : state.findings.findings()) {
    if (finding.code == FindingCode::kOrphanL2Table) {
      for (uint64_t i = 0; i < std::max<uint64_t>(finding.clusters, 1); ++i) {
        tables_.push_back(finding.host_offset->bytes + i * state.geo().cluster_size());
      }
    }
    if (IsDamagedL1Entry(finding)) {
      damaged_l1_entries_ += std::max<uint64_t>(finding.length_bytes / 8, 1);
    }
    if (IsDamagedL2Entry(finding.code)) damaged_l2_entries_ += finding.clusters;
  }
  damaged_l1_entries_ += FindLostTables(state, plan.image(), stored).size();
  SetTablesAside();
  FindEndsOfFile();
}

// What an unreferenced table maps is the data of that table, whatever else might fit it. A table
// whose COPIED flags do not say what the refcounts say is no L2 table (bitmap tables look alike).
void OrphanEvidence::SetTablesAside() {
  const Geometry& geometry = state_.geo();
  std::vector<uint64_t> tables;
  for (const uint64_t table : tables_) {
    orphans_.Erase(table >> geometry.cluster_bits);
    std::vector<uint8_t> bytes(std::min(geometry.cluster_size(), kMaxPieceBytes));
    if (!plan_.image().ReadAt(HostOffset{table}, absl::MakeSpan(bytes)).ok()) continue;
    uint64_t agree = 0, disagree = 0, typical = 0;
    for (uint64_t at = 0; at < bytes.size(); at += geometry.l2_entry_bytes()) {
      const uint64_t entry = Load64(&bytes[at]);
      typical += IsCopied(entry) || IsCompressed(entry) ? 1 : 0;
      if (IsCompressed(entry)) {
        EraseOrphans(DecodeCompressed(entry, geometry.cluster_bits));
        continue;
      }
      const uint64_t cluster = EntryOffset(entry) >> geometry.cluster_bits;
      // Nothing counts the clusters of a data file.
      if (geometry.data_file || cluster == 0 || cluster >= state_.file_clusters) continue;
      orphans_.Erase(cluster);
      ++(IsCopied(entry) == (stored_.Get(cluster) == 1) ? agree : disagree);
    }
    if (agree < disagree || (typical == 0 && state_.snapshots.empty())) continue;
    tables.push_back(table);
    flags_agree_ &= disagree == 0;
  }
  tables_ = std::move(tables);
  orphans_.ForEach([this](uint64_t) { tables_explain_all_ = false; });
}

void OrphanEvidence::EraseOrphans(const CompressedRange& range) {
  const int cluster_bits = state_.geo().cluster_bits;
  const uint64_t end = std::min((range.end_bytes() - 1) >> cluster_bits, state_.file_clusters - 1);
  for (uint64_t cluster = range.offset_bytes >> cluster_bits; cluster <= end; ++cluster) {
    orphans_.Erase(cluster);
  }
}

bool OrphanEvidence::IsOrphan(uint64_t offset_bytes) const {
  const uint64_t cluster = offset_bytes >> state_.geo().cluster_bits;
  return IsAligned(offset_bytes, state_.geo().cluster_size()) && cluster < state_.file_clusters &&
         orphans_.Contains(cluster) && !HoldsRefcountsOfOld(offset_bytes);
}

bool OrphanEvidence::HoldsRefcountsOfOld(uint64_t offset_bytes) const {
  const auto [found, is_new] = looked_into_.emplace(offset_bytes, false);
  if (is_new) {
    found->second = WasRefcountBlock(state_, plan_.image(), offset_bytes) ||
                    HoldsReplacedRefcounts(offset_bytes);
  }
  return found->second;
}

// Of refcount structures that this repair has replaced.
bool OrphanEvidence::HoldsReplacedRefcounts(uint64_t offset_bytes) const {
  if (plan_.old_blocks().empty()) return false;
  std::vector<uint8_t> cluster(std::min(state_.geo().cluster_size(), kMaxPieceBytes));
  const std::vector<uint64_t> near = plan_.OldBlocksNear(offset_bytes, state_.geo());
  const bool is_block = std::any_of(near.begin(), near.end(), [&](uint64_t index) {
    return IsOldRefcountBlock(state_, {index, offset_bytes}) != OldRefcounts::kNo;
  });
  return is_block ||
         (plan_.image().ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(cluster)).ok() &&
          IsOldRefcountTable(state_, cluster));
}

bool OrphanEvidence::FlagFits(uint64_t entry, uint64_t offset_bytes) const {
  return IsCopied(entry) == (stored_.Get(offset_bytes >> state_.geo().cluster_bits) == 1);
}

Explanation OrphanEvidence::Explain(uint64_t offset_bytes, std::string evidence) const {
  const uint64_t cluster = offset_bytes >> state_.geo().cluster_bits;
  return {offset_bytes, stored_.Get(cluster) == 1, std::move(evidence)};
}

bool OrphanEvidence::WasCutOff(uint64_t offset_bytes) const {
  return offset_bytes >= plan_.old_size_bytes() &&
         (plan_.was_cut_off() || offset_bytes < cut_off_end_bytes_ ||
          stored_.Get(offset_bytes >> state_.geo().cluster_bits) != 0);
}

// Pointers to the clusters right behind the end are what the end of the file cut off, unless the
// refcounts deny it. One alone proves that only where its refcount is lost.
void OrphanEvidence::FindEndsOfFile() {
  const uint64_t size = state_.geo().cluster_size();
  std::vector<uint64_t> targets;
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code != FindingCode::kDataPastEnd &&
        finding.code != FindingCode::kZeroClusterPastEnd &&
        finding.code != FindingCode::kL2TablePastEnd) {
      continue;
    }
    if (!finding.target) continue;
    for (uint64_t i = 0; i < finding.clusters; ++i) {
      targets.push_back(SaturatingAdd(finding.target->bytes, i * size));
    }
  }
  std::sort(targets.begin(), targets.end());
  const uint64_t end = RoundUp(plan_.old_size_bytes(), size);
  uint64_t dense = 0;
  for (const uint64_t target : targets) {
    if (target - std::min(target, end) >= 2 * (dense + 1) * size) break;
    ++dense;
    const bool enough = dense > 1 || !plan_.old_blocks().empty();
    if (enough) cut_off_end_bytes_ = SaturatingAdd(target, size);
  }
}

std::optional<uint64_t> OrphanEvidence::Neighbour(const EntryAt& at, int direction) const {
  const Geometry& geometry = state_.geo();
  const uint64_t step = geometry.l2_entry_bytes();
  const uint64_t size = geometry.cluster_size();
  const uint64_t reach = std::min(
      kNeighbourReach, direction < 0 ? at.l2_index : geometry.l2_entries() - 1 - at.l2_index);
  std::vector<uint8_t> bytes(reach * step);
  const uint64_t begin = direction < 0 ? at.place_bytes - bytes.size() : at.place_bytes + step;
  if (reach == 0 || !plan_.image().ReadAt(HostOffset{begin}, absl::MakeSpan(bytes)).ok()) {
    return std::nullopt;
  }
  for (uint64_t i = 0; i < reach; ++i) {
    const uint64_t entry = Load64(&bytes[(direction < 0 ? reach - 1 - i : i) * step]);
    if (KindOfL2Entry(entry, geometry) == L2EntryKind::kUnallocated) continue;
    const uint64_t offset = EntryOffset(entry);
    if (KindOfL2Entry(entry, geometry) != L2EntryKind::kNormal || !IsAligned(offset, size) ||
        offset < size || offset >= state_.file.size_bytes()) {
      return std::nullopt;
    }
    return direction < 0 ? offset + size : offset - size;
  }
  return std::nullopt;
}

std::optional<Explanation> OrphanEvidence::FromBothNeighbours(const EntryAt& at) const {
  const std::optional<uint64_t> after = Neighbour(at, -1);
  if (!after || after != Neighbour(at, +1) || !IsOrphan(*after)) return std::nullopt;
  return Explain(*after, absl::StrFormat("the unreferenced cluster at 0x%x lies between the "
                                         "clusters of the entries before and behind",
                                         *after));
}

// Whether the refcounts of all clusters are right but for where the entry should lead and where it
// does.
bool OrphanEvidence::OthersAreRight(uint64_t orphan_bytes, uint64_t entry) const {
  const int bits = state_.geo().cluster_bits;
  bool is_right = true;
  state_.mismatched->ForEach([&](uint64_t cluster) {
    is_right &= cluster == orphan_bytes >> bits || cluster == EntryOffset(entry) >> bits ||
                cluster >= state_.file_clusters;
  });
  return is_right;
}

std::optional<Explanation> OrphanEvidence::ForDataEntry(const EntryAt& at) const {
  if (!IsCompressed(at.entry) && WasCutOff(EntryOffset(at.entry))) return std::nullopt;
  // What looks compressed was either that, or has that one bit wrong.
  if (IsCompressed(at.entry)) {
    const uint64_t standard = at.entry & ~kCompressedBit;
    if ((standard & kStandardL2ReservedMask) != 0 || !IsOrphan(EntryOffset(standard))) {
      return std::nullopt;
    }
    return Explain(EntryOffset(standard), "the flag that says compressed is the one bit too many");
  }
  const std::optional<Explanation> between = FromBothNeighbours(at);
  absl::flat_hash_set<uint64_t> one_bit;
  for (int bit = 1; bit < 64; ++bit) {
    const uint64_t candidate = at.entry ^ (uint64_t{1} << bit);
    if (IsCompressed(candidate) || (candidate & kStandardL2ReservedMask) != 0) continue;
    const uint64_t offset = EntryOffset(candidate);
    if (IsOrphan(offset) && (!at.active || FlagFits(at.entry, offset))) one_bit.insert(offset);
  }
  if (between && (one_bit.empty() || one_bit.contains(between->offset_bytes))) return between;
  if (between) return std::nullopt;
  const std::optional<uint64_t> before = Neighbour(at, -1), behind = Neighbour(at, +1);
  for (const std::optional<uint64_t>& place : {before, behind}) {
    if (place && one_bit.contains(*place)) {
      return Explain(*place, absl::StrFormat("one flipped bit away from 0x%x, which is "
                                             "unreferenced and lies next to its neighbour's",
                                             *place));
    }
  }
  if (one_bit.size() == 1) {
    return Explain(
        *one_bit.begin(),
        absl::StrFormat("one flipped bit away from 0x%x, which is unreferenced", *one_bit.begin()));
  }
  // A pointer far outside is one with a high bit too many, and leads to what is left without it.
  const uint64_t offset_bits = EntryOffset(at.entry);
  if (offset_bits / 64 >= state_.file.size_bytes()) {
    const uint64_t without_top = offset_bits ^ (uint64_t{1} << (63 - __builtin_clzll(offset_bits)));
    if (without_top != 0 && without_top < state_.file.size_bytes() &&
        IsAligned(without_top, state_.geo().cluster_size())) {
      return std::nullopt;
    }
  }
  if (state_.coverage.complete() && !plan_.gives_up_evidence() && snapshots_are_known() &&
      damaged_l2_entries_ == 1 && damaged_l1_entries_ == 0 && state_.orphan_clusters == 1 &&
      one_bit.empty() && state_.orphans.size() == 1) {
    const uint64_t offset = state_.orphans.front().first_cluster << state_.geo().cluster_bits;
    if (!IsOrphan(offset) || !OthersAreRight(offset, at.entry)) return std::nullopt;
    return Explain(offset, absl::StrFormat("0x%x is the only unreferenced cluster, and this the "
                                           "only damaged pointer",
                                           offset));
  }
  return std::nullopt;
}

std::optional<Explanation> OrphanEvidence::ForL1Entry(uint64_t entry) const {
  if (WasCutOff(EntryOffset(entry))) return std::nullopt;
  const uint64_t reserved = entry & kL1ReservedMask;
  std::optional<uint64_t> one_bit;
  bool several = false;
  for (const uint64_t table : tables_) {
    const uint64_t difference = (EntryOffset(entry) ^ table) | reserved;
    if ((difference & (difference - 1)) != 0 || !FlagFits(entry, table)) continue;
    several = one_bit.has_value();
    one_bit = table;
  }
  // A flag alone hardly says that there ever was a table.
  const bool has_offset = EntryOffset(entry) != 0;
  if (one_bit && !several && (has_offset || tables_.size() == 1)) {
    return Explain(*one_bit, absl::StrFormat("one flipped bit away from the unreferenced L2 "
                                             "table at 0x%x",
                                             *one_bit));
  }
  if (has_offset && tables_.size() == 1 && flags_agree_ && tables_explain_all_ && reserved == 0 &&
      !plan_.gives_up_evidence() && damaged_l1_entries_ == 1 && snapshots_are_known()) {
    return Explain(tables_.front(), absl::StrFormat("the L2 table at 0x%x is the only one that "
                                                    "nothing references, and this the only "
                                                    "damaged pointer",
                                                    tables_.front()));
  }
  return std::nullopt;
}

}  // namespace qcow2check
