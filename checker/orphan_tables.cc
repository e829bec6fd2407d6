#include "checker/orphan_tables.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/types/span.h"
#include "checker/cluster_batch.h"
#include "checker/lost_pointers.h"
#include "checker/old_refcounts.h"
#include "checker/part_notes.h"
#include "checker/table_shape.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

// What is read of an orphan to tell that it is no table: most data is not, from its start on.
constexpr uint64_t kStartBytes = 4096;
constexpr uint64_t kBatchBytes = 1u << 20;
constexpr uint64_t kEnoughBytes = 64u << 20;
// Mappings that make a table of something of which a part cannot be one.
constexpr uint64_t kEnoughIfDamaged = 8;
// Refcount blocks that make a refcount table.
constexpr uint64_t kEnoughBlocks = 16;

bool IsIn(const ClusterSet& clusters, const CheckState& state, uint64_t cluster) {
  return cluster < state.file_clusters && clusters.Contains(cluster);
}

// A refcount table looks like an L2 table without flags, but leads to refcounts: with each entry,
// as what a guest keeps in one cluster may look like refcounts, too.
bool IsRefcountTable(const CheckState& state, absl::Span<const uint8_t> cluster) {
  const Geometry& geometry = state.geo();
  std::vector<uint8_t> target(std::min(geometry.cluster_size(), kMaxPieceBytes));
  uint64_t blocks = 0;
  for (uint64_t at = 0; at < cluster.size() && blocks < kEnoughBlocks; at += 8) {
    const uint64_t entry = Load64(&cluster[at]);
    if (entry == 0) continue;
    if (!IsAligned(entry, geometry.cluster_size()) || entry >= state.file.size_bytes() ||
        !state.file.ReadAt(HostOffset{entry}, absl::MakeSpan(target)).ok() ||
        !LooksLikeRefcounts(target, geometry.refcount_order)) {
      return IsOldRefcountTable(state, cluster);
    }
    ++blocks;
  }
  return blocks != 0;
}

// `cluster` as an L2 table that nothing refers to any more, if it is one. Most of what it maps is
// then counted more often than it is referenced: orphans, and what a snapshot shares. `tables` are
// the L2 tables in use: what leads to those is a copy of an L1 table.
std::optional<OrphanTable> AsOrphanTable(const CheckState& state, const ClusterSet& orphans,
                                         const absl::flat_hash_set<uint64_t>& tables,
                                         absl::Span<const uint8_t> cluster, uint64_t offset) {
  const Geometry& geometry = state.geo();
  const TableScan scan = ScanTable(cluster, geometry, state.file.size_bytes());
  const uint64_t wrong = scan.malformed + scan.outside;
  if (scan.allocated == 0 || wrong * 4 > scan.used || scan.repeated >= 2) return std::nullopt;
  uint64_t fitting = 0;
  bool copied = false;
  for (uint64_t at = 0; at < cluster.size(); at += geometry.l2_entry_bytes()) {
    const uint64_t entry = Load64(&cluster[at]);
    const L2EntryKind kind = KindOfL2Entry(entry, geometry);
    if (kind == L2EntryKind::kUnallocated || kind == L2EntryKind::kZeroPlain) continue;
    const bool compressed = kind == L2EntryKind::kCompressed;
    copied |= IsCopied(entry);
    const uint64_t target = compressed ? DecodeCompressed(entry, geometry.cluster_bits).offset_bytes
                                       : EntryOffset(entry);
    if (!compressed && tables.contains(target)) continue;
    if (geometry.data_file) {
      // Refcounts say nothing of a data file. Without snapshots all its clusters are COPIED.
      fitting += IsCopied(entry) ? 1 : 0;
      continue;
    }
    if (!compressed && target == offset) return std::nullopt;  // no table maps itself
    const uint64_t index = target >> geometry.cluster_bits;
    fitting += IsIn(orphans, state, index) || IsIn(*state.too_high, state, index) ? 1 : 0;
  }
  if (fitting * 2 <= scan.allocated || (wrong != 0 && fitting < kEnoughIfDamaged) ||
      IsRefcountTable(state, cluster)) {
    return std::nullopt;
  }
  return OrphanTable{offset, scan.allocated, copied, wrong != 0};
}

// Looks at the start of each orphan, and at all of those that may be tables.
class OrphanSearch {
 public:
  OrphanSearch(CheckState& state, const ClusterSet& orphans)
      : state_(state),
        orphans_(orphans),
        start_bytes_(std::min(state.geo().cluster_size(), kStartBytes)),
        cluster_(std::min(state.geo().cluster_size(), kMaxPieceBytes)) {}

  std::vector<OrphanTable> Run();

 private:
  bool IsEnough() const;
  void Add(const OrphanRun& run);
  void LookAtBatch();
  void LookAt(uint64_t offset, const ClusterBatch::Piece& start);

  CheckState& state_;
  const ClusterSet& orphans_;
  const uint64_t start_bytes_;
  std::vector<uint8_t> cluster_;
  absl::flat_hash_set<uint64_t> in_use_;
  Extent data_;  // the last stretch of the file that was found not to be a hole
  ClusterBatch batch_{/*looks_for_holes=*/false};
  std::vector<uint64_t> offsets_;  // of the next batch
  uint64_t bytes_read_ = 0;
  bool done_ = false;
  std::vector<OrphanTable> tables_;
};

std::vector<OrphanTable> OrphanSearch::Run() {
  for (const L2Table& table : state_.l2_tables) {
    if (table.shape != L2Shape::kLost) in_use_.insert(table.offset_bytes);
  }
  for (const OrphanRun& run : state_.orphans) {
    if (!done_) Add(run);
  }
  if (!done_) LookAtBatch();
  return std::move(tables_);
}

// Orphans are freed only if each was looked at. Where they are held back, some of them will do.
bool OrphanSearch::IsEnough() const {
  return bytes_read_ >= kEnoughBytes &&
         (!tables_.empty() || state_.orphans_explained || HasLostPointers(state_));
}

// All of a run that is no hole.
void OrphanSearch::Add(const OrphanRun& run) {
  const uint64_t size = state_.geo().cluster_size();
  const uint64_t end =
      std::min((run.first_cluster + run.clusters) * size, RoundUp(state_.file.size_bytes(), size));
  for (uint64_t at = run.first_cluster * size; at < end;) {
    if (at >= data_.end_bytes) data_ = state_.file.NextData(HostOffset{at});
    if (data_.empty() || data_.begin_bytes >= end) return;
    at = std::max(at, data_.begin_bytes / size * size);
    const uint64_t data_end = std::min(end, RoundUp(data_.end_bytes, size));
    for (; at < data_end; at += size) {
      offsets_.push_back(at);
      if (offsets_.size() * start_bytes_ < kBatchBytes) continue;
      LookAtBatch();
      if (done_) return;
    }
  }
}

void OrphanSearch::LookAtBatch() {
  PartNotes notes = state_.NewPart();
  // What cannot be read may be a lost table: then it is a finding, and holds the orphans back.
  batch_.Read(state_.file, offsets_, start_bytes_, Structure::kDataCluster, notes);
  state_.Absorb(std::move(notes));
  bytes_read_ += offsets_.size() * start_bytes_;
  for (size_t i = 0; i < offsets_.size() && !IsEnough(); ++i) {
    LookAt(offsets_[i], batch_.pieces()[i]);
  }
  done_ = IsEnough() || !state_.MayGoOn();
  offsets_.clear();
}

void OrphanSearch::LookAt(uint64_t offset, const ClusterBatch::Piece& start) {
  if (!start.complete) return;
  const auto bytes = absl::MakeConstSpan(start.bytes, start_bytes_);
  const TableScan scan = ScanTable(bytes, state_.geo(), state_.file.size_bytes());
  if ((scan.malformed + scan.outside) * 2 > scan.used) return;
  auto cluster = bytes;
  if (start_bytes_ < cluster_.size()) {
    bytes_read_ += cluster_.size();
    if (!state_.Read(HostOffset{offset}, absl::MakeSpan(cluster_), Structure::kDataCluster)) return;
    cluster = cluster_;
  }
  const std::optional<OrphanTable> table =
      AsOrphanTable(state_, orphans_, in_use_, cluster, offset);
  if (!table) return;
  state_.memory->Take(sizeof(OrphanTable));
  tables_.push_back(*table);
}

}  // namespace

std::vector<OrphanTable> FindOrphanTables(CheckState& state, const ClusterSet& orphans) {
  return OrphanSearch(state, orphans).Run();
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
