#include "checker/orphan_tables.h"

#include <algorithm>

#include "absl/types/span.h"
#include "checker/old_refcounts.h"
#include "checker/table_shape.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

constexpr uint64_t kSearchBytes = 64u << 20;

bool IsIn(const ClusterSet& clusters, const CheckState& state, uint64_t cluster) {
  return cluster < state.file_clusters && clusters.Contains(cluster);
}

// A refcount table looks like an L2 table without COPIED flags, but leads to refcounts.
bool IsRefcountTable(const CheckState& state, absl::Span<const uint8_t> cluster) {
  const Geometry& geometry = state.geo();
  std::vector<uint8_t> target(std::min(geometry.cluster_size(), kMaxPieceBytes));
  for (uint64_t at = 0; at < cluster.size(); at += 8) {
    const uint64_t entry = Load64(&cluster[at]);
    if (entry == 0) continue;
    if (IsAligned(entry, geometry.cluster_size()) && entry < state.file.size_bytes() &&
        state.file.ReadAt(HostOffset{entry}, absl::MakeSpan(target)).ok() &&
        LooksLikeRefcounts(target, geometry.refcount_order)) {
      return true;
    }
    break;
  }
  return IsOldRefcountTable(state, cluster);
}

// The clusters that `cluster` maps if it is an L2 table that nothing refers to any more; otherwise
// 0. Most of what it maps is then counted more often than it is referenced: orphans, and what a
// snapshot shares. `tables` are the L2 tables in use: what leads to those is a copy of an L1 table.
uint64_t ClustersMapped(const CheckState& state, const ClusterSet& orphans,
                        const absl::flat_hash_set<uint64_t>& tables,
                        absl::Span<const uint8_t> cluster, uint64_t offset) {
  const Geometry& geometry = state.geo();
  const TableScan scan = ScanTable(cluster, geometry, state.file.size_bytes());
  if (scan.allocated == 0 || scan.malformed != 0 || scan.outside != 0 || scan.repeated >= 2) {
    return 0;
  }
  uint64_t fitting = 0;
  for (uint64_t at = 0; at < cluster.size(); at += geometry.l2_entry_bytes()) {
    const uint64_t entry = Load64(&cluster[at]);
    const L2EntryKind kind = KindOfL2Entry(entry, geometry);
    if (kind == L2EntryKind::kUnallocated || kind == L2EntryKind::kZeroPlain) continue;
    const bool compressed = kind == L2EntryKind::kCompressed;
    const uint64_t target = compressed ? DecodeCompressed(entry, geometry.cluster_bits).offset_bytes
                                       : EntryOffset(entry);
    if (!compressed && tables.contains(target)) continue;
    if (geometry.data_file) {
      // Refcounts say nothing of a data file. Without snapshots all its clusters are COPIED.
      fitting += IsCopied(entry) ? 1 : 0;
      continue;
    }
    if (!compressed && target == offset) return 0;  // no table maps itself
    const uint64_t index = target >> geometry.cluster_bits;
    fitting += IsIn(orphans, state, index) || IsIn(*state.too_high, state, index) ? 1 : 0;
  }
  return fitting * 2 > scan.allocated && !IsRefcountTable(state, cluster) ? scan.allocated : 0;
}

}  // namespace

std::vector<OrphanTable> FindOrphanTables(CheckState& state, const ClusterSet& orphans) {
  std::vector<OrphanTable> tables;
  const Geometry& geometry = state.geo();
  absl::flat_hash_set<uint64_t> in_use;
  for (const L2Table& table : state.l2_tables) {
    if (table.shape != L2Shape::kLost) in_use.insert(table.offset_bytes);
  }
  const uint64_t size = std::min(geometry.cluster_size(), kMaxPieceBytes);
  std::vector<uint8_t> cluster(size);
  uint64_t left = kSearchBytes;
  for (const OrphanRun& run : state.orphans) {
    for (uint64_t i = 0; i < run.clusters; ++i) {
      if (left < size) return tables;
      left -= size;
      const uint64_t offset = (run.first_cluster + i) << geometry.cluster_bits;
      if (state.file.IsHole({offset, std::min(offset + size, state.file.size_bytes())})) continue;
      // What cannot be read may be a lost table: then it is a finding, and holds the orphans back.
      if (!state.file.ReadAt(HostOffset{offset}, absl::MakeSpan(cluster)).ok() &&
          !state.Read(HostOffset{offset}, absl::MakeSpan(cluster), Structure::kDataCluster)) {
        continue;
      }
      const uint64_t mapped = ClustersMapped(state, orphans, in_use, cluster, offset);
      if (mapped != 0) tables.push_back({offset, mapped});
    }
  }
  return tables;
}

absl::flat_hash_set<uint64_t> TablesOfDeletedSnapshots(const CheckState& state,
                                                       const std::vector<OrphanTable>& tables) {
  absl::flat_hash_set<uint64_t> places, deleted;
  for (const OrphanTable& table : tables) places.insert(table.offset_bytes);
  std::vector<uint8_t> cluster(std::min(state.geo().cluster_size(), kMaxPieceBytes));
  for (const OrphanTable& table : tables) {
    if (!state.file.ReadAt(HostOffset{table.offset_bytes}, absl::MakeSpan(cluster)).ok()) continue;
    for (uint64_t at = 0; at < cluster.size(); at += 8) {
      const uint64_t target = EntryOffset(Load64(&cluster[at]));
      if (target == table.offset_bytes || !places.contains(target)) continue;
      deleted.insert({target, table.offset_bytes});
    }
  }
  return deleted;
}

absl::flat_hash_set<uint64_t> MappedAsData(const CheckState& state,
                                           const std::vector<OrphanTable>& tables,
                                           const absl::flat_hash_set<uint64_t>& among) {
  const Geometry& geometry = state.geo();
  absl::flat_hash_set<uint64_t> mapped;
  std::vector<uint8_t> cluster(std::min(geometry.cluster_size(), kMaxPieceBytes));
  for (const OrphanTable& table : tables) {
    if (!state.file.ReadAt(HostOffset{table.offset_bytes}, absl::MakeSpan(cluster)).ok()) continue;
    for (uint64_t at = 0; at < cluster.size(); at += geometry.l2_entry_bytes()) {
      const uint64_t entry = Load64(&cluster[at]);
      if (!IsCompressed(entry) && among.contains(EntryOffset(entry))) {
        mapped.insert(EntryOffset(entry));
      }
    }
  }
  return mapped;
}

}  // namespace qcow2check
