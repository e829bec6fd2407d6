#include "repair/lost_tables.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"
#include "repair/metadata_doubt.h"

namespace qcow2check {
namespace {

// A table that lies on what the header or a snapshot names is no table: that other thing is.
bool LosesTo(Structure structure) {
  return structure == Structure::kHeader || structure == Structure::kL1Table ||
         structure == Structure::kSnapshotL1Table || structure == Structure::kRefcountTable ||
         structure == Structure::kSnapshotTable || structure == Structure::kLuksHeader;
}

// Half of its entries have the COPIED flag that the refcount asks for, and some have it set. No
// table maps itself.
bool HasProof(const CheckState& state, const ImageFile& image, const StoredRefcounts& stored,
              uint64_t table_bytes) {
  const Geometry& geometry = state.geo();
  std::vector<uint8_t> bytes(std::min(geometry.cluster_size(), kMaxPieceBytes));
  if (!image.ReadAt(HostOffset{table_bytes}, absl::MakeSpan(bytes)).ok()) return false;
  uint64_t used = 0, copied = 0, agree = 0;
  for (uint64_t at = 0; at < bytes.size(); at += geometry.l2_entry_bytes()) {
    const uint64_t entry = Load64(&bytes[at]);
    if (KindOfL2Entry(entry, geometry) != L2EntryKind::kNormal) continue;
    if (EntryOffset(entry) == table_bytes) continue;
    const uint64_t cluster = EntryOffset(entry) >> geometry.cluster_bits;
    const bool is_one = cluster < state.file_clusters && stored.Get(cluster) == 1;
    ++used;
    copied += IsCopied(entry) ? 1 : 0;
    agree += IsCopied(entry) == is_one ? 1 : 0;
  }
  return copied != 0 && agree * 2 > used;
}

}  // namespace

std::vector<LostTable> FindLostTables(const CheckState& state, const ImageFile& image,
                                      const StoredRefcounts& stored) {
  std::vector<LostTable> lost;
  absl::flat_hash_set<uint64_t> seen;
  absl::flat_hash_map<uint64_t, uint64_t> l1_index_of;  // of the L2 tables, by offset
  const uint64_t size = state.geo().cluster_size();
  for (const Finding& finding : state.findings.findings()) {
    if (!finding.host_offset) continue;
    const uint64_t offset = finding.host_offset->bytes / size * size;
    if (finding.code == FindingCode::kL2TableLost && finding.confidence == Confidence::kCertain) {
      if (seen.insert(offset).second) {
        lost.push_back({&finding, offset, finding.l1_index.value_or(0)});
      }
    }
    if (finding.code != FindingCode::kMetadataOverlap &&
        finding.code != FindingCode::kDataOnMetadata) {
      continue;
    }
    if (std::none_of(finding.owners.begin(), finding.owners.end(), [&](const Owner& owner) {
          return LosesTo(owner.structure) && !IsInDoubt(state, image, owner, *finding.host_offset);
        })) {
      continue;
    }
    if (l1_index_of.empty()) {
      for (const L2Table& table : state.l2_tables) {
        l1_index_of.emplace(table.offset_bytes, table.l1_index);
      }
    }
    const auto table = l1_index_of.find(offset);
    if (table == l1_index_of.end() || HasProof(state, image, stored, offset)) continue;
    if (seen.insert(offset).second) lost.push_back({&finding, offset, table->second});
  }
  return lost;
}

}  // namespace qcow2check
