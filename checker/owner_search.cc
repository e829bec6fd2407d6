#include "checker/owner_search.h"

#include <algorithm>

#include "checker/table_reader.h"
#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/table_entry.h"

namespace qcow2check {

const ClusterUsers* OwnerSearch::Find(uint64_t cluster) const {
  const auto found = users_.find(cluster);
  return found == users_.end() ? nullptr : &found->second;
}

void OwnerSearch::KeepOwner(ClusterUsers& users, const Owner& owner) {
  if (users.owners.size() >= limits_.per_cluster || owners_kept_ >= limits_.in_all) return;
  ++owners_kept_;
  Take(sizeof(Owner));
  users.owners.push_back(owner);
}

void OwnerSearch::Take(uint64_t bytes) {
  state_.memory->Take(bytes);
  taken_bytes_ += bytes;
}

ClusterUsers& OwnerSearch::UsersOf(uint64_t cluster) {
  const auto [found, is_new] = users_.try_emplace(cluster);
  if (is_new) Take(sizeof(*found));
  return found->second;
}

void OwnerSearch::AddMetadata(const std::vector<uint64_t>& sorted, const MetadataRegion& region) {
  const int bits = state_.geo().cluster_bits;
  const uint64_t first = region.offset_bytes >> bits;
  const uint64_t last = SaturatingAdd(region.offset_bytes, region.length_bytes - 1) >> bits;
  for (auto it = std::lower_bound(sorted.begin(), sorted.end(), first);
       it != sorted.end() && *it <= last; ++it) {
    ClusterUsers& users = UsersOf(*it);
    ++users.metadata;
    users.refcount_block |= region.structure == Structure::kRefcountBlock;
    KeepOwner(users, {.structure = region.structure,
                      .host_offset = HostOffset{region.offset_bytes},
                      .snapshot = region.snapshot});
  }
}

void OwnerSearch::FindMetadataOwners() {
  std::vector<uint64_t> sorted;
  wanted_.ForEach([&sorted](uint64_t cluster) { sorted.push_back(cluster); });
  const uint64_t size = state_.geo().cluster_size();
  for (const MetadataRegion& region : state_.regions) {
    if (!state_.MayGoOn()) return;
    AddMetadata(sorted, region);
  }
  for (const L2Table& table : state_.l2_tables) {
    AddMetadata(sorted, {Structure::kL2Table, table.offset_bytes, size, table.snapshot});
  }
  for (const RefcountBlock& block : state_.refcount_blocks) {
    AddMetadata(sorted, {Structure::kRefcountBlock, block.offset_bytes, size, std::nullopt});
  }
  for (const uint64_t offset : state_.bitmap_data) {
    AddMetadata(sorted, {Structure::kBitmapData, offset, size, std::nullopt});
  }
}

void OwnerSearch::FindGuestOwners(const CopiedQuestion& copied_question) {
  const uint64_t step = state_.geo().l2_entry_bytes();
  ReadAllTables(state_, [&](L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) {
    if (table.shape == L2Shape::kLost) return;
    for (uint64_t at = 0; at < bytes.size(); at += step) {
      const uint64_t entry = Load64(&bytes[at]);
      if (entry == 0) continue;
      VisitEntry({table, table.offset_bytes + begin + at, (begin + at) / step, entry},
                 copied_question);
    }
  });
}

void OwnerSearch::VisitEntry(const L2EntryPlace& at, const CopiedQuestion& copied_question) {
  const Geometry& geometry = state_.geo();
  if (geometry.data_file) return;
  const L2EntryKind kind = KindOfL2Entry(at.entry, geometry);
  if (kind == L2EntryKind::kUnallocated || kind == L2EntryKind::kZeroPlain) return;
  if (kind == L2EntryKind::kCompressed) {
    const CompressedRange range = DecodeCompressed(at.entry, geometry.cluster_bits);
    if (state_.IsOutside(range.offset_bytes, range.length_bytes)) return;
    const uint64_t last = (range.end_bytes() - 1) >> geometry.cluster_bits;
    for (uint64_t c = range.offset_bytes >> geometry.cluster_bits; c <= last; ++c) {
      if (wanted_.Contains(c)) AddGuest(c, at);
    }
    return;
  }
  const uint64_t offset = EntryOffset(at.entry);
  const uint64_t cluster = offset >> geometry.cluster_bits;
  if (cluster >= state_.tracked_clusters) return;
  if (at.table.active_weight != 0 && state_.copied_questions->Contains(cluster)) {
    copied_question(at);
  }
  // Past the end, a misaligned entry can still name the cluster that the end cuts: it was not
  // counted, so it is no user.
  if (state_.IsOutside(offset, geometry.cluster_size())) return;
  if (wanted_.Contains(cluster)) AddGuest(cluster, at);
  if (!IsAligned(offset, geometry.cluster_size()) && wanted_.Contains(cluster + 1)) {
    AddGuest(cluster + 1, at);
  }
}

void OwnerSearch::AddGuest(uint64_t cluster, const L2EntryPlace& at) {
  const Geometry& geometry = state_.geo();
  ClusterUsers& users = UsersOf(cluster);
  const GuestOffset guest = geometry.GuestOffsetOf(at.table.l1_index, at.l2_index);
  ++users.guests;
  if (!users.guest) users.guest = guest;
  users.several_guests |= *users.guest != guest;
  const bool compressed = IsCompressed(at.entry);
  users.compressed |= compressed;
  users.uncompressed |= !compressed;
  users.by_misaligned_entry |=
      !compressed && !IsAligned(EntryOffset(at.entry), geometry.cluster_size());
  KeepOwner(users,
            {.structure = compressed ? Structure::kCompressedCluster : Structure::kDataCluster,
             .host_offset = geometry.OffsetOf({cluster}),
             .entry_offset = HostOffset{at.place},
             .guest_offset = guest,
             .l1_index = at.table.l1_index,
             .l2_index = at.l2_index,
             .snapshot = at.table.snapshot});
}

}  // namespace qcow2check
