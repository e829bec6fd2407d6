#include "repair/stored_refcounts.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "common/refcount_block.h"
#include "repair/metadata_doubt.h"

namespace qcow2check {
namespace {

// Entries are set in pieces of whole bytes; 4,096 entries are at most 32 KiB.
constexpr uint64_t kEntriesAtOnce = 4096;
constexpr uint64_t kPieceBytes = 4096;

}  // namespace

StoredRefcounts::StoredRefcounts(const CheckState& state, PlanBuilder& plan)
    : state_(state),
      plan_(plan),
      order_(state.geo().refcount_order),
      block_entries_(state.geo().refcount_block_entries()) {
  if (!state.refcounts_readable) return;
  absl::flat_hash_set<uint64_t> unusable;
  for (const Finding& finding : state.findings.findings()) {
    const bool spoils = finding.code == FindingCode::kRefcountBlockGarbage ||
                        finding.code == FindingCode::kMetadataOverlap ||
                        (finding.code == FindingCode::kUnreadable &&
                         finding.structure == Structure::kRefcountBlock);
    if (!spoils || !finding.host_offset) continue;
    const uint64_t size = state.geo().cluster_size();
    unusable.insert(finding.host_offset->bytes / size * size);
  }
  // Only a damaged L1 entry takes these for something else.
  for (const L2Table& table : state.l2_tables) {
    if (table.is_refcount_block && table.shape == L2Shape::kLost) {
      unusable.erase(table.offset_bytes);
    }
  }
  absl::flat_hash_set<uint64_t> seen;
  for (const RefcountBlock& block : state.refcount_blocks) {
    if (unusable.contains(block.offset_bytes) || !seen.insert(block.offset_bytes).second ||
        !HoldsRefcounts(state, plan.image(), block)) {
      continue;
    }
    blocks_[block.table_index] = block.offset_bytes;
  }
}

std::optional<uint64_t> StoredRefcounts::BlockAt(uint64_t table_index) const {
  const auto found = blocks_.find(table_index);
  return found == blocks_.end() ? std::nullopt : std::optional(found->second);
}

uint64_t StoredRefcounts::Get(uint64_t cluster) const {
  const std::optional<uint64_t> block = BlockAt(TableIndexOf(cluster));
  if (!block) return 0;
  const uint64_t bit = (cluster % block_entries_) << order_;
  const uint64_t piece_bytes = std::min(state_.geo().cluster_size(), kPieceBytes);
  const uint64_t begin = bit / 8 / piece_bytes * piece_bytes;
  if (piece_.bytes.empty() || piece_.offset_bytes != *block + begin ||
      piece_.writes != plan_.writes()) {
    piece_ = {*block + begin, plan_.writes(), std::vector<uint8_t>(piece_bytes)};
    if (!plan_.image().ReadAt(HostOffset{*block + begin}, absl::MakeSpan(piece_.bytes)).ok()) {
      piece_.bytes.clear();
    }
  }
  if (piece_.bytes.empty()) return GetAlone(*block, bit);
  return LoadRefcount(piece_.bytes.data(), (bit - begin * 8) >> order_, order_);
}

// From a piece with sectors that cannot be read.
uint64_t StoredRefcounts::GetAlone(uint64_t block, uint64_t bit) const {
  uint8_t entry[8] = {};
  const size_t length = order_ < 3 ? 1 : size_t{1} << (order_ - 3);
  if (!plan_.image().ReadAt(HostOffset{block + bit / 8}, absl::MakeSpan(entry, length)).ok()) {
    return 0;
  }
  return LoadRefcount(entry, (bit % 8) >> order_, order_);
}

void StoredRefcounts::Set(uint64_t first, uint64_t count, uint64_t value, const PlanReason& reason,
                          bool before_all) {
  std::vector<uint8_t> bytes;
  for (uint64_t cluster = first, left = count; left != 0;) {
    const uint64_t index = cluster % block_entries_;
    const uint64_t entries = std::min({left, block_entries_ - index, kEntriesAtOnce});
    const std::optional<uint64_t> block = BlockAt(TableIndexOf(cluster));
    cluster += entries;
    left -= entries;
    if (!block) continue;
    const uint64_t begin = (index << order_) / 8;
    const uint64_t end = (((index + entries) << order_) + 7) / 8;
    bytes.resize(end - begin);
    if (!plan_.image().ReadAt(HostOffset{*block + begin}, absl::MakeSpan(bytes)).ok()) continue;
    const uint64_t first_index = index - ((begin * 8) >> order_);
    for (uint64_t i = 0; i < entries; ++i) {
      StoreRefcount(bytes.data(), first_index + i, order_, value);
    }
    if (before_all) {
      plan_.WriteFirst(*block + begin, bytes, reason);
    } else {
      plan_.Write(*block + begin, bytes, reason);
    }
  }
}

}  // namespace qcow2check
