#include "repair/shared_evidence.h"

#include <bit>

#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/table_entry.h"

namespace qcow2check {

void SharedEvidence::FindTables() const {
  if (!tables_.empty()) return;
  for (const L2Table& table : state_.l2_tables) {
    if (table.shape != L2Shape::kMappings) continue;
    tables_[table.offset_bytes] = &table;
    offsets_[table.l1_index].push_back(table.offset_bytes);
  }
}

bool SharedEvidence::MissesReferences(uint64_t offset_bytes, uint64_t references) const {
  const uint64_t cluster = offset_bytes >> state_.geo().cluster_bits;
  return IsAligned(offset_bytes, state_.geo().cluster_size()) && cluster < state_.file_clusters &&
         state_.too_high->Contains(cluster) &&
         stored_.Get(cluster) == SaturatingAdd(state_.expected->Get(cluster), references);
}

std::optional<Explanation> SharedEvidence::ForDataEntry(const EntryAt& at) const {
  // What is shared has no COPIED flag in the active tables.
  if (state_.too_high->empty() || (at.active && IsCopied(at.entry))) return std::nullopt;
  FindTables();
  const uint64_t size = state_.geo().cluster_size();
  const uint64_t own_offset = at.place_bytes / size * size;
  const auto own = tables_.find(own_offset);
  if (own == tables_.end()) return std::nullopt;
  std::optional<uint64_t> found;
  for (const uint64_t table : offsets_[own->second->l1_index]) {
    if (table == own_offset) continue;
    if (reads_left_ == 0) return std::nullopt;
    --reads_left_;
    uint8_t bytes[8];
    if (!plan_.image().ReadAt(HostOffset{table + at.place_bytes - own_offset}, bytes).ok()) {
      return std::nullopt;
    }
    const uint64_t other = Load64(bytes);
    const uint64_t offset = EntryOffset(other);
    if (KindOfL2Entry(other, state_.geo()) != L2EntryKind::kNormal ||
        !std::has_single_bit((at.entry ^ other) & ~kCopiedBit) ||
        !MissesReferences(offset, own->second->weight)) {
      continue;
    }
    if (found && *found != offset) return std::nullopt;
    found = offset;
  }
  if (!found) return std::nullopt;
  return Explanation{*found, false,
                     absl::StrFormat("one flipped bit away from 0x%x, which another table has at "
                                     "the same guest offset, and which misses a reference",
                                     *found)};
}

}  // namespace qcow2check
