#include "checker/old_refcounts.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/refcount_block.h"

namespace qcow2check {
namespace {

// Fewer equal counts prove nothing.
constexpr uint64_t kEnough = 4;

bool IsOrphan(const CheckState& state, uint64_t cluster) {
  const auto behind = std::upper_bound(
      state.orphans.begin(), state.orphans.end(), cluster,
      [](uint64_t value, const OrphanRun& run) { return value < run.first_cluster; });
  return behind != state.orphans.begin() &&
         cluster - std::prev(behind)->first_cluster < std::prev(behind)->clusters;
}

// What nobody had counted before the structures of now were made: their own clusters.
class RefcountClusters {
 public:
  explicit RefcountClusters(const CheckState& state)
      : first_of_table_(state.header.refcount_table_offset >> state.geo().cluster_bits),
        clusters_of_table_(state.header.refcount_table_clusters) {
    for (const RefcountBlock& block : state.refcount_blocks) {
      blocks_.insert(block.offset_bytes >> state.geo().cluster_bits);
    }
  }
  bool Contain(uint64_t cluster) const {
    return blocks_.contains(cluster) ||
           (cluster >= first_of_table_ && cluster - first_of_table_ < clusters_of_table_);
  }

 private:
  const uint64_t first_of_table_;
  const uint64_t clusters_of_table_;
  absl::flat_hash_set<uint64_t> blocks_;
};

}  // namespace

OldRefcounts IsOldRefcountBlock(const CheckState& state, const RefcountBlock& block) {
  const Geometry& geometry = state.geo();
  const uint64_t entries = geometry.refcount_block_entries();
  const uint64_t first = SaturatingMultiply(block.table_index, entries);
  if (first >= state.file_clusters) return OldRefcounts::kNo;
  const uint64_t end = std::min(first + entries, state.file_clusters);
  const uint64_t own = block.offset_bytes >> geometry.cluster_bits;
  const uint64_t piece = std::min(geometry.cluster_size(), kMaxPieceBytes);
  const uint64_t piece_entries = piece * 8 >> geometry.refcount_order;
  std::optional<RefcountClusters> structures;  // made when the first one is asked for
  std::vector<uint8_t> bytes(piece);
  uint64_t equal = 0, different = 0;
  bool all_ones = true;
  for (uint64_t from = 0; from < entries; from += piece_entries) {
    const HostOffset place = {block.offset_bytes + from / piece_entries * piece};
    if (!state.file.ReadAt(place, absl::MakeSpan(bytes)).ok()) return OldRefcounts::kNo;
    for (uint64_t i = 0; i < piece_entries; ++i) {
      const uint64_t cluster = first + from + i;
      const uint64_t count = LoadRefcount(bytes.data(), i, geometry.refcount_order);
      if (cluster == own && count == 0) return OldRefcounts::kNo;
      const uint64_t expected = cluster < end ? state.expected->Get(cluster) : 0;
      if (count == expected) {
        equal += count != 0 ? 1 : 0;
        all_ones &= count == 1;
      } else if (expected != 0 || !IsOrphan(state, cluster)) {
        if (count == 0 && !structures) structures.emplace(state);
        different += count == 0 && structures->Contain(cluster) ? 0 : 1;
        if (different > (end - first) / 8) return OldRefcounts::kNo;
      }
    }
  }
  if (equal < kEnough || different * 9 > equal) return OldRefcounts::kNo;
  return all_ones ? OldRefcounts::kAllOnes : OldRefcounts::kYes;
}

bool IsOldRefcountTable(const CheckState& state, absl::Span<const uint8_t> cluster) {
  bool leads_to_blocks = false;
  for (uint64_t index = 0; index < cluster.size() / 8; ++index) {
    const uint64_t entry = Load64(&cluster[index * 8]);
    if (entry == 0) continue;
    if (!IsAligned(entry, state.geo().cluster_size()) ||
        !IsOrphan(state, entry >> state.geo().cluster_bits) ||
        IsOldRefcountBlock(state, {index, entry}) == OldRefcounts::kNo) {
      return false;
    }
    leads_to_blocks = true;
  }
  return leads_to_blocks;
}

}  // namespace qcow2check
