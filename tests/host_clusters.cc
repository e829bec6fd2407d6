#include "tests/host_clusters.h"

#include <algorithm>

#include "common/byte_order.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "common/refcount_block.h"

namespace qcow2check::testing {

HostClusters::HostClusters(int cluster_bits, int refcount_order)
    : cluster_bits_(cluster_bits), refcount_order_(refcount_order) {
  counts_ = {1, 1, 1};
  table_offset_ = cluster_size();
  block_offsets_ = {2 * cluster_size()};
}

uint64_t HostClusters::refcount_max() const {
  return refcount_order_ == 6 ? ~uint64_t{0} : (uint64_t{1} << (1 << refcount_order_)) - 1;
}

uint64_t HostClusters::CountOf(uint64_t cluster) const {
  return cluster < counts_.size() ? counts_[cluster] : 0;
}

uint64_t HostClusters::Refcount(uint64_t offset) const { return CountOf(offset >> cluster_bits_); }

bool HostClusters::HasBlock(uint64_t index) const {
  return index < block_offsets_.size() && block_offsets_[index] != 0;
}

uint64_t HostClusters::FindFree(uint64_t clusters) const {
  uint64_t first = first_maybe_free_;
  for (uint64_t cluster = first; cluster < first + clusters; ++cluster) {
    if (CountOf(cluster) != 0) first = cluster + 1;
  }
  return first;
}

void HostClusters::Claim(uint64_t first, uint64_t clusters) {
  if (counts_.size() < first + clusters) counts_.resize(first + clusters);
  for (uint64_t cluster = first; cluster < first + clusters; ++cluster) counts_[cluster] = 1;
  while (CountOf(first_maybe_free_) != 0) ++first_maybe_free_;
}

uint64_t HostClusters::Allocate(uint64_t clusters) {
  QCOW2CHECK_CHECK(clusters > 0);
  uint64_t first = FindFree(clusters);
  while (AddMissingBlocks(first, clusters)) first = FindFree(clusters);
  Claim(first, clusters);
  return first << cluster_bits_;
}

uint64_t HostClusters::AllocateBytes(uint64_t length) {
  QCOW2CHECK_CHECK(length > 0 && length <= cluster_size());
  if (next_byte_ != 0 && Refcount(next_byte_) >= refcount_max()) next_byte_ = 0;
  const uint64_t left = next_byte_ == 0 ? 0 : RoundUp(next_byte_, cluster_size()) - next_byte_;
  uint64_t offset = next_byte_;
  if (left < length) {
    const uint64_t cluster = Allocate();
    // The new cluster's first reference is the one that AddReferences gives it.
    counts_[cluster >> cluster_bits_] = 0;
    if (left == 0 || next_byte_ + left != cluster) offset = cluster;
  }
  AddReferences(offset, length, 1);
  next_byte_ = IsAligned(offset + length, cluster_size()) ? 0 : offset + length;
  return offset;
}

void HostClusters::AddReferences(uint64_t offset, uint64_t length, int delta) {
  QCOW2CHECK_CHECK(length > 0 && (delta == 1 || delta == -1));
  const uint64_t last = (offset + length - 1) >> cluster_bits_;
  for (uint64_t cluster = offset >> cluster_bits_; cluster <= last; ++cluster) {
    QCOW2CHECK_CHECK(cluster < counts_.size());
    uint64_t& count = counts_[cluster];
    // A refcount that does not fit the width: the test asks for an image that cannot be.
    QCOW2CHECK_CHECK(delta < 0 ? count > 0 : count < refcount_max());
    count += static_cast<uint64_t>(static_cast<int64_t>(delta));
    if (count != 0) continue;
    first_maybe_free_ = std::min(first_maybe_free_, cluster);
    if (next_byte_ >> cluster_bits_ == cluster) next_byte_ = 0;
  }
}

bool HostClusters::AddMissingBlocks(uint64_t first, uint64_t clusters) {
  bool added = false;
  const uint64_t last_index = (first + clusters - 1) / block_entries();
  for (uint64_t index = first / block_entries(); index <= last_index; ++index) {
    if (HasBlock(index)) continue;
    AddBlock(index);
    added = true;
  }
  return added;
}

void HostClusters::AddBlock(uint64_t index) {
  // A block may describe itself, but not sit where another block is still missing.
  uint64_t cluster = FindFree(1);
  while (cluster / block_entries() != index && AddMissingBlocks(cluster, 1)) cluster = FindFree(1);
  if (HasBlock(index)) return;  // making room for the other one needed this one, too
  Claim(cluster, 1);
  if (block_offsets_.size() <= index) block_offsets_.resize(index + 1);
  block_offsets_[index] = cluster << cluster_bits_;
  GrowTable();
}

void HostClusters::GrowTable() {
  const uint64_t entries_per_cluster = cluster_size() / 8;
  if (growing_table_ || block_offsets_.size() <= table_clusters_ * entries_per_cluster) return;
  growing_table_ = true;
  uint64_t clusters = table_clusters_;
  while (clusters * entries_per_cluster < block_offsets_.size() + entries_per_cluster) {
    clusters *= 2;
  }
  const uint64_t new_offset = Allocate(clusters);
  QCOW2CHECK_CHECK(block_offsets_.size() <= clusters * entries_per_cluster);
  AddReferences(table_offset_, table_clusters_ << cluster_bits_, -1);
  table_offset_ = new_offset;
  table_clusters_ = clusters;
  growing_table_ = false;
}

void HostClusters::Store(std::vector<uint8_t>& bytes) const {
  uint64_t end = table_offset_ + (table_clusters_ << cluster_bits_);
  for (const uint64_t block : block_offsets_) end = std::max(end, block + cluster_size());
  if (bytes.size() < end) bytes.resize(end);
  std::fill_n(&bytes[table_offset_], table_clusters_ << cluster_bits_, uint8_t{0});
  for (uint64_t index = 0; index < block_offsets_.size(); ++index) {
    const uint64_t block = block_offsets_[index];
    Store64(&bytes[table_offset_ + 8 * index], block);
    if (block == 0) continue;
    std::fill_n(&bytes[block], cluster_size(), uint8_t{0});
    const uint64_t first = index * block_entries();
    for (uint64_t i = 0; i < block_entries() && first + i < counts_.size(); ++i) {
      StoreRefcount(&bytes[block], i, refcount_order_, counts_[first + i]);
    }
  }
}

}  // namespace qcow2check::testing
