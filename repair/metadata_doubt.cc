#include "repair/metadata_doubt.h"

#include <algorithm>
#include <vector>

#include "common/byte_order.h"
#include "common/limits.h"
#include "common/refcount_block.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

// Refcounts beyond this and the number of snapshots are none that an accident leaves.
constexpr uint64_t kSmallRefcount = 16;

// Every entry could be one; a snapshot's table maps something.
bool IsL1Table(const CheckState& state, const ImageFile& image, const L1Table& table) {
  const uint64_t entries = std::min(table.users.back().entries, kMaxPieceBytes / 8);
  std::vector<uint8_t> bytes(entries * 8);
  if (!image.ReadAt(HostOffset{table.offset_bytes}, absl::MakeSpan(bytes)).ok()) return false;
  bool used = false;
  for (size_t at = 0; at < bytes.size(); at += 8) {
    const uint64_t entry = Load64(&bytes[at]);
    const uint64_t offset = EntryOffset(entry);
    if ((entry & kL1ReservedMask) != 0 || !IsAligned(offset, state.geo().cluster_size()) ||
        offset >= state.file.size_bytes()) {
      return false;
    }
    used = used || entry != 0;
  }
  return used || !table.users.front().snapshot.has_value();
}

struct RefcountScan {
  uint64_t used = 0;     // counts that are not 0
  uint64_t strange = 0;  // of these, those that no accident leaves
  bool readable = true;
};

RefcountScan ScanRefcounts(const CheckState& state, const ImageFile& image,
                           const RefcountBlock& block) {
  const Geometry& geometry = state.geo();
  const uint64_t size = geometry.cluster_size();
  std::vector<uint8_t> bytes(std::min(size, kMaxPieceBytes));
  const uint64_t first = SaturatingMultiply(block.table_index, geometry.refcount_block_entries());
  const uint64_t most = kSmallRefcount + state.snapshots.size();
  const bool was_cut_off = state.findings.Has(FindingCode::kFileTruncated);
  RefcountScan scan;
  for (uint64_t begin = 0; begin < size; begin += bytes.size()) {
    const HostOffset place = {block.offset_bytes + begin};
    scan.readable &= image.ReadAt(place, absl::MakeSpan(bytes)).ok();
    if (!scan.readable) return scan;
    const uint64_t first_here = first + (begin * 8 >> geometry.refcount_order);
    for (uint64_t i = 0; i < bytes.size() * 8 >> geometry.refcount_order; ++i) {
      const uint64_t count = LoadRefcount(bytes.data(), i, geometry.refcount_order);
      if (count == 0) continue;
      const uint64_t cluster = SaturatingAdd(first_here, i);
      const bool in_file = cluster < state.file_clusters;
      const uint64_t expected = in_file ? state.expected->Get(cluster) : 0;
      ++scan.used;
      scan.strange += (!in_file && !was_cut_off) || count > std::max(most, expected) ? 1 : 0;
    }
  }
  return scan;
}

}  // namespace

bool HoldsRefcounts(const CheckState& state, const ImageFile& image, const RefcountBlock& block) {
  const RefcountScan scan = ScanRefcounts(state, image, block);
  return scan.readable && scan.strange * 4 <= scan.used;
}

bool WasRefcountBlock(const CheckState& state, const ImageFile& image, uint64_t offset_bytes) {
  constexpr uint64_t kEnough = 4;
  // The first ranges: orphans that are blocks come from the start of the table.
  for (uint64_t index = 0; index < 4; ++index) {
    const RefcountScan scan = ScanRefcounts(state, image, {index, offset_bytes});
    if (scan.readable && scan.used >= kEnough && scan.strange == 0) return true;
  }
  return false;
}

namespace {

// Whether nearly every refcount that is not 0 is that of the walk, in some range of clusters.
bool MirrorsRefcounts(const CheckState& state, const ImageFile& image, uint64_t offset_bytes) {
  constexpr uint64_t kEnough = 4;
  constexpr uint64_t kRangesTried = 16;
  const Geometry& geometry = state.geo();
  std::vector<uint8_t> bytes(std::min(geometry.cluster_size(), kMaxPieceBytes));
  if (!image.ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(bytes)).ok()) return false;
  const uint64_t entries = geometry.refcount_block_entries();
  for (uint64_t range = 0; range < kRangesTried && range * entries < state.file_clusters; ++range) {
    uint64_t used = 0, equal = 0;
    for (uint64_t i = 0; i < bytes.size() * 8 >> geometry.refcount_order; ++i) {
      const uint64_t cluster = range * entries + i;
      const uint64_t stored = LoadRefcount(bytes.data(), i, geometry.refcount_order);
      const uint64_t expected = cluster < state.file_clusters ? state.expected->Get(cluster) : 0;
      used += stored != 0 || expected != 0 ? 1 : 0;
      equal += stored != 0 && stored == expected ? 1 : 0;
    }
    if (equal >= kEnough && equal * 10 >= used * 9) return true;
  }
  return false;
}

}  // namespace

bool HoldsOldRefcounts(const CheckState& state, const ImageFile& image, uint64_t offset_bytes) {
  if (MirrorsRefcounts(state, image, offset_bytes)) return true;
  std::vector<uint8_t> table(std::min(state.geo().cluster_size(), kMaxPieceBytes));
  if (!image.ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(table)).ok()) return false;
  bool used = false;
  for (size_t at = 0; at < table.size(); at += 8) {
    const uint64_t entry = Load64(&table[at]);
    if (entry == 0) continue;
    if (!IsAligned(entry, state.geo().cluster_size()) || entry >= state.file.size_bytes() ||
        !MirrorsRefcounts(state, image, entry)) {
      return false;
    }
    used = true;
  }
  return used;
}

bool ActiveL1IsInDoubt(const CheckState& state) {
  const uint64_t size = state.geo().cluster_size();
  bool malformed = false;
  for (const ActiveL1Entry& slot : state.active_l1) {
    const uint64_t offset = EntryOffset(slot.entry);
    malformed |= (slot.entry & kL1ReservedMask) != 0 || offset == 0 || !IsAligned(offset, size) ||
                 offset >= state.file.size_bytes();
  }
  return malformed &&
         std::none_of(state.l2_tables.begin(), state.l2_tables.end(), [](const L2Table& table) {
           return table.active_weight != 0 && table.shape == L2Shape::kMappings;
         });
}

bool IsInDoubt(const CheckState& state, const ImageFile& image, const Owner& owner,
               HostOffset place) {
  switch (owner.structure) {
    case Structure::kRefcountBlock:
      return std::none_of(state.refcount_blocks.begin(), state.refcount_blocks.end(),
                          [&](const RefcountBlock& block) {
                            return block.offset_bytes == owner.host_offset.bytes &&
                                   HoldsRefcounts(state, image, block);
                          });
    case Structure::kL2Table:
      return std::none_of(state.l2_tables.begin(), state.l2_tables.end(),
                          [&](const L2Table& table) {
                            return table.offset_bytes == owner.host_offset.bytes &&
                                   table.shape == L2Shape::kMappings;
                          });
    case Structure::kL1Table:
    case Structure::kSnapshotL1Table:
      return state.findings.Has(FindingCode::kL1Lost) || ActiveL1IsInDoubt(state) ||
             std::none_of(state.l1_tables.begin(), state.l1_tables.end(),
                          [&](const L1Table& table) {
                            return table.offset_bytes == owner.host_offset.bytes &&
                                   IsL1Table(state, image, table);
                          });
    case Structure::kRefcountTable:
      return state.findings.Has(FindingCode::kRefcountTableInvalid) ||
             state.findings.Has(FindingCode::kRefcountTableEntryReservedBits) ||
             state.findings.Has(FindingCode::kRefcountBlockMisaligned);
    case Structure::kSnapshotTable:
      // Lengths in its entries decide how far it reaches.
      return place.bytes >= owner.host_offset.bytes + state.geo().cluster_size() ||
             state.findings.Has(FindingCode::kSnapshotExtraTooLarge) ||
             state.findings.Has(FindingCode::kSnapshotL1Invalid) ||
             state.findings.Has(FindingCode::kSnapshotTableInvalid) ||
             state.findings.Has(FindingCode::kSnapshotTooMany);
    case Structure::kHeader:
    case Structure::kLuksHeader:
      return false;
    default:
      return true;
  }
}

bool SnapshotsAreInDoubt(const CheckState& state, const ImageFile& image) {
  if (state.snapshots.empty()) return false;
  for (const FindingCode code :
       {FindingCode::kSnapshotTableInvalid, FindingCode::kSnapshotTooMany,
        FindingCode::kSnapshotExtraTooLarge, FindingCode::kSnapshotL1Invalid,
        FindingCode::kSnapshotSizeMismatch}) {
    if (state.findings.Has(code)) return true;
  }
  for (const Finding& finding : state.findings.findings()) {
    for (const Owner& owner : finding.owners) {
      const bool of_snapshots = owner.structure == Structure::kSnapshotL1Table ||
                                owner.structure == Structure::kSnapshotTable;
      if (of_snapshots && finding.host_offset &&
          IsInDoubt(state, image, owner, *finding.host_offset)) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace qcow2check
