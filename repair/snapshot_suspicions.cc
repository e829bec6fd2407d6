#include "repair/snapshot_suspicions.h"

#include <iterator>

#include "absl/container/btree_map.h"

namespace qcow2check {

SnapshotSuspicions::SnapshotSuspicions(const CheckState& state) {
  absl::btree_map<uint64_t, const Finding*> too_low;  // refcounts, by offset
  for (const Finding& finding : state.findings.findings()) {
    if (finding.code == FindingCode::kRefcountTooLow && finding.host_offset) {
      too_low.emplace(finding.host_offset->bytes, &finding);
    }
    if (finding.snapshot) {
      named_.insert({*finding.snapshot, finding.code});
      if (finding.structure == Structure::kSnapshotL1Table ||
          finding.code == FindingCode::kSnapshotSizeMismatch) {
        about_l1_.emplace(*finding.snapshot, &finding);
      }
    }
    if (finding.code != FindingCode::kMetadataOverlap) continue;
    for (const Owner& owner : finding.owners) {
      if (owner.structure == Structure::kSnapshotL1Table && owner.snapshot) {
        about_l1_.emplace(*owner.snapshot, &finding);
      }
    }
  }
  // No two snapshots have one L1 table.
  for (const L1Table& table : state.l1_tables) {
    const auto behind = too_low.upper_bound(table.offset_bytes);
    if (table.users.size() == 1 || behind == too_low.begin()) continue;
    const auto& [begin_bytes, finding] = *std::prev(behind);
    if (table.offset_bytes >= begin_bytes + finding->length_bytes) continue;
    for (const L1User& user : table.users) {
      if (user.snapshot) about_l1_.emplace(*user.snapshot, finding);
    }
  }
}

const Finding* SnapshotSuspicions::About(uint64_t snapshot) const {
  const auto found = about_l1_.find(snapshot);
  return found == about_l1_.end() ? nullptr : found->second;
}

}  // namespace qcow2check
