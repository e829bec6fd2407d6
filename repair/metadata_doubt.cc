#include "repair/metadata_doubt.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "common/byte_order.h"
#include "common/check.h"
#include "common/limits.h"
#include "common/luks_header.h"
#include "common/refcount_block.h"
#include "common/table_entry.h"
#include "repair/snapshot_table.h"

namespace qcow2check {
namespace {

// Refcounts beyond this and the number of snapshots are none that an accident leaves.
constexpr uint64_t kSmallRefcount = 16;

// Every entry could be one. A table leads to L2 tables, and a snapshot's to nothing that is none:
// L2 tables look like L1 tables, too.
bool IsL1Table(const CheckState& state, const ImageFile& image, const L1Table& table) {
  const uint64_t entries = std::min(table.users.back().entries, kMaxPieceBytes / 8);
  std::vector<uint8_t> bytes(entries * 8);
  if (!image.ReadAt(HostOffset{table.offset_bytes}, absl::MakeSpan(bytes)).ok()) return false;
  const bool of_snapshot = table.users.front().snapshot.has_value();
  absl::flat_hash_map<uint64_t, L2Shape> shapes;
  for (const L2Table& l2 : state.l2_tables) shapes[l2.offset_bytes] = l2.shape;
  bool leads_to_table = false, leads_to_none = false;
  for (size_t at = 0; at < bytes.size(); at += 8) {
    const uint64_t entry = Load64(&bytes[at]);
    const uint64_t offset = EntryOffset(entry);
    if ((entry & kL1ReservedMask) != 0 || !IsAligned(offset, state.geo().cluster_size()) ||
        offset >= state.file.size_bytes()) {
      return false;
    }
    const auto shape = shapes.find(offset);
    if (shape == shapes.end()) continue;
    leads_to_none |= shape->second == L2Shape::kLost;
    leads_to_table |= shape->second == L2Shape::kMappings;
  }
  return of_snapshot ? leads_to_table && !leads_to_none : leads_to_table || !leads_to_none;
}

// Which counts of a block no accident leaves.
class CountJudge {
 public:
  CountJudge(const CheckState& state, uint64_t first_cluster)
      : state_(state),
        first_cluster_(first_cluster),
        most_(kSmallRefcount + state.snapshots.size()),
        was_cut_off_(state.findings.Has(FindingCode::kFileTruncated)) {}

  // Of entry `index`.
  bool IsStrange(uint64_t index, uint64_t count) const {
    if (count == 0) return false;
    const uint64_t cluster = SaturatingAdd(first_cluster_, index);
    if (cluster >= state_.file_clusters) return !was_cut_off_ || count > most_;
    return count > most_ && count > state_.expected->Get(cluster);
  }

 private:
  const CheckState& state_;
  const uint64_t first_cluster_;
  const uint64_t most_;
  const bool was_cut_off_;
};

struct RefcountScan {
  uint64_t used = 0;     // counts that are not 0
  uint64_t strange = 0;  // of these, those that no accident leaves
  bool counts_itself = true;
  bool readable = true;
};

RefcountScan ScanRefcounts(const CheckState& state, const ImageFile& image,
                           const RefcountBlock& block) {
  const Geometry& geometry = state.geo();
  const uint64_t size = geometry.cluster_size();
  std::vector<uint8_t> bytes(std::min(size, kMaxPieceBytes));
  const uint64_t first = SaturatingMultiply(block.table_index, geometry.refcount_block_entries());
  const CountJudge judge(state, first);
  const uint64_t own = block.offset_bytes >> geometry.cluster_bits;
  RefcountScan scan;
  if (image.IsHole({block.offset_bytes, block.offset_bytes + size})) {
    scan.counts_itself = false;
    return scan;
  }
  for (uint64_t begin = 0; begin < size; begin += bytes.size()) {
    const HostOffset place = {block.offset_bytes + begin};
    scan.readable &= image.ReadAt(place, absl::MakeSpan(bytes)).ok();
    if (!scan.readable) return scan;
    const uint64_t first_here = begin * 8 >> geometry.refcount_order;
    for (uint64_t i = 0; i < bytes.size() * 8 >> geometry.refcount_order; ++i) {
      const uint64_t count = LoadRefcount(bytes.data(), i, geometry.refcount_order);
      if (count == 0) {
        if (SaturatingAdd(first, first_here + i) == own) scan.counts_itself = false;
        continue;
      }
      ++scan.used;
      scan.strange += judge.IsStrange(first_here + i, count) ? 1 : 0;
    }
  }
  return scan;
}

}  // namespace

namespace {

// What the block says of the clusters that are in use.
struct UseCounts {
  uint64_t in_use = 0;
  uint64_t right = 0;
  uint64_t missing = 0;  // counted as 0
};

UseCounts CompareWithUse(const CheckState& state, const ImageFile& image,
                         const RefcountBlock& block) {
  const Geometry& geometry = state.geo();
  const uint64_t first = SaturatingMultiply(block.table_index, geometry.refcount_block_entries());
  std::vector<uint8_t> bytes(std::min(geometry.cluster_size(), kMaxPieceBytes));
  if (!image.ReadAt(HostOffset{block.offset_bytes}, absl::MakeSpan(bytes)).ok()) return {};
  UseCounts counts;
  for (uint64_t i = 0; i < bytes.size() * 8 >> geometry.refcount_order; ++i) {
    const uint64_t cluster = SaturatingAdd(first, i);
    if (cluster >= state.file_clusters) break;
    const uint64_t expected = state.expected->Get(cluster);
    if (expected == 0) continue;
    const uint64_t count = LoadRefcount(bytes.data(), i, geometry.refcount_order);
    ++counts.in_use;
    counts.right += count == expected ? 1 : 0;
    counts.missing += count == 0 ? 1 : 0;
  }
  return counts;
}

// Most of what is in use is counted right, which so many bits are not by chance. Then high counts
// of what is not in use are those of compressed data.
bool IsBeyondChance(const UseCounts& counts, int refcount_order) {
  constexpr uint64_t kEnoughBits = 16;
  return counts.right * 2 > counts.in_use && counts.right << refcount_order >= kEnoughBits;
}

}  // namespace

namespace {

// Whether the check has found the counts of the block right but for a few, its own among them: then
// whoever reads them sees refcounts. A count that is right is not strange.
bool WasFoundRight(const CheckState& state, const RefcountBlock& block) {
  const uint64_t entries = state.geo().refcount_block_entries();
  const uint64_t first = SaturatingMultiply(block.table_index, entries);
  const uint64_t own = block.offset_bytes >> state.geo().cluster_bits;
  // Behind the end of the file, and where blocks or their parts were left out, less is known.
  if (SaturatingAdd(first, entries) > state.file_clusters ||
      state.findings.Has(FindingCode::kUnreadable) ||
      state.findings.Has(FindingCode::kLimitReached) || state.expected->Get(own) != 1 ||
      state.mismatched->Contains(own)) {
    return false;
  }
  uint64_t wrong = 0, in_use = 0;
  for (uint64_t cluster = first; cluster < first + entries; cluster += 64) {
    wrong += static_cast<uint64_t>(std::popcount(state.mismatched->Word(cluster)));
    uint64_t bits = 0;
    if (state.expected->BitWord(cluster, bits)) {
      in_use += static_cast<uint64_t>(std::popcount(bits));
      continue;
    }
    for (uint64_t i = 0; i < 64; ++i) in_use += state.expected->Get(cluster + i) != 0 ? 1 : 0;
  }
  return wrong * 5 <= in_use;
}

}  // namespace

bool HoldsRefcounts(const CheckState& state, const ImageFile& image, const RefcountBlock& block) {
  if (WasFoundRight(state, block)) return true;
  const RefcountScan scan = ScanRefcounts(state, image, block);
  const uint64_t own = block.offset_bytes >> state.geo().cluster_bits;
  if (!scan.readable) return false;
  // Zeros that something else uses, too, are its zeros.
  if (scan.used == 0) return state.expected->Get(own) <= 1;
  const UseCounts counts = CompareWithUse(state, image, block);
  if (scan.strange * 4 > scan.used) {
    return scan.counts_itself && IsBeyondChance(counts, state.geo().refcount_order);
  }
  // Narrow counts are never strange, but a block counts itself, or more of what is in use than it
  // misses.
  return scan.counts_itself || counts.right > counts.missing;
}

bool WasRefcountBlock(const CheckState& state, const ImageFile& image, uint64_t offset_bytes) {
  constexpr uint64_t kEnough = 4;
  const Geometry& geometry = state.geo();
  const uint64_t size = geometry.cluster_size();
  QCOW2CHECK_CHECK(size <= kMaxPieceBytes);
  if (image.IsHole({offset_bytes, std::min(offset_bytes + size, image.size_bytes())})) return false;
  std::vector<uint8_t> bytes(size);
  if (!image.ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(bytes)).ok()) return false;
  const uint64_t entries = geometry.refcount_block_entries();
  uint64_t used = 0;
  for (uint64_t i = 0; i < entries && used < kEnough; ++i) {
    used += LoadRefcount(bytes.data(), i, geometry.refcount_order) != 0 ? 1 : 0;
  }
  if (used < kEnough) return false;
  // The first ranges: orphans that are blocks come from the start of the table.
  for (uint64_t index = 0; index < 4; ++index) {
    const CountJudge judge(state, index * entries);
    uint64_t i = 0;
    while (i < entries &&
           !judge.IsStrange(i, LoadRefcount(bytes.data(), i, geometry.refcount_order))) {
      ++i;
    }
    if (i == entries) return true;
  }
  return false;
}

namespace {

// Offsets of the L2 tables that map something.
absl::flat_hash_set<uint64_t> MappingTables(const CheckState& state) {
  absl::flat_hash_set<uint64_t> tables;
  for (const L2Table& table : state.l2_tables) {
    if (table.shape == L2Shape::kMappings) tables.insert(table.offset_bytes);
  }
  return tables;
}

// How the entries of an L1 table speak for it and against it.
class L1Verdict {
 public:
  // `tables`: those of MappingTables; must outlive this object.
  L1Verdict(const CheckState& state, const absl::flat_hash_set<uint64_t>& tables)
      : state_(state), tables_(tables) {}

  void Add(uint64_t entry) {
    const uint64_t offset = EntryOffset(entry);
    const uint64_t reserved = entry & kL1ReservedMask;
    if (entry == 0) return;
    garbage_ |= (reserved & (reserved - 1)) != 0 || offset == 0 ||
                !IsAligned(offset, state_.geo().cluster_size());
    sound_ |= reserved == 0 && tables_.contains(offset);
    const bool one_bit_too_many = (reserved & (reserved - 1)) == 0 && tables_.contains(offset);
    malformed_ |= !one_bit_too_many && (reserved != 0 || offset == 0 ||
                                        !IsAligned(offset, state_.geo().cluster_size()) ||
                                        offset >= state_.file.size_bytes());
  }
  bool in_doubt() const { return malformed_ && !sound_; }
  bool is_garbage() const { return in_doubt() && garbage_; }

 private:
  const CheckState& state_;
  const absl::flat_hash_set<uint64_t>& tables_;
  bool sound_ = false;
  bool malformed_ = false;
  bool garbage_ = false;
};

// The L1 tables of snapshots. Many snapshots may share one: each is looked at once.
class SnapshotL1Tables {
 public:
  SnapshotL1Tables(const CheckState& state, const ImageFile& image)
      : state_(state), image_(image), tables_(MappingTables(state)) {}

  bool IsInDoubt(uint64_t snapshot) {
    const SnapshotEntry& entry = state_.snapshots[snapshot];
    const auto [known, is_new] = known_.try_emplace({entry.l1_table_offset, entry.l1_size}, false);
    if (is_new) known->second = Judge(entry);
    return known->second;
  }

 private:
  bool Judge(const SnapshotEntry& entry) const {
    std::vector<uint8_t> bytes(std::min<uint64_t>(uint64_t{entry.l1_size} * 8, kMaxPieceBytes));
    if (!image_.ReadAt(HostOffset{entry.l1_table_offset}, absl::MakeSpan(bytes)).ok()) return true;
    L1Verdict verdict(state_, tables_);
    for (size_t at = 0; at < bytes.size(); at += 8) verdict.Add(Load64(&bytes[at]));
    return verdict.in_doubt();
  }

  const CheckState& state_;
  const ImageFile& image_;
  const absl::flat_hash_set<uint64_t> tables_;
  absl::flat_hash_map<std::pair<uint64_t, uint32_t>, bool> known_;
};

}  // namespace

namespace {

L1Verdict VerdictOnActiveL1(const CheckState& state, const absl::flat_hash_set<uint64_t>& tables) {
  L1Verdict verdict(state, tables);
  for (const ActiveL1Entry& slot : state.active_l1) verdict.Add(slot.entry);
  return verdict;
}

}  // namespace

bool ActiveL1IsInDoubt(const CheckState& state) {
  return VerdictOnActiveL1(state, MappingTables(state)).in_doubt();
}

bool ActiveL1IsGarbage(const CheckState& state) {
  return VerdictOnActiveL1(state, MappingTables(state)).is_garbage();
}

namespace {

// Its own words for where it ends: those of the pointer to it may be wrong.
uint64_t EndOfLuksHeader(const ImageFile& image, uint64_t offset_bytes) {
  std::array<uint8_t, kLuksHeaderBytes> bytes;
  if (!image.ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(bytes)).ok()) return offset_bytes;
  const uint64_t sectors = DecodeLuksHeader(bytes).payload_offset_sectors;
  return SaturatingAdd(offset_bytes, sectors * kSectorBytes);
}

}  // namespace

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
    case Structure::kLuksHeader:
      return state.findings.Has(FindingCode::kLuksHeaderInvalid) ||
             place.bytes >= EndOfLuksHeader(image, owner.host_offset.bytes);
    case Structure::kHeader:
      return false;
    default:
      return true;
  }
}

absl::flat_hash_set<uint64_t> SnapshotsInDoubt(const CheckState& state, const ImageFile& image) {
  absl::flat_hash_set<uint64_t> named, in_doubt;
  absl::flat_hash_map<uint64_t, bool> l1_tables;  // whether what owns clusters there is in doubt
  bool table_in_doubt = false;
  for (const Finding& finding : state.findings.findings()) {
    if (finding.snapshot) named.insert(*finding.snapshot);
    const bool about_entry = finding.code == FindingCode::kSnapshotExtraTooLarge ||
                             finding.code == FindingCode::kSnapshotL1Invalid ||
                             finding.code == FindingCode::kSnapshotSizeMismatch;
    if (about_entry && finding.snapshot) in_doubt.insert(*finding.snapshot);
    if (!finding.host_offset) continue;
    for (const Owner& owner : finding.owners) {
      if (owner.structure == Structure::kSnapshotTable) {
        table_in_doubt |= IsInDoubt(state, image, owner, *finding.host_offset);
      } else if (owner.structure == Structure::kSnapshotL1Table && owner.snapshot) {
        const auto [known, is_new] = l1_tables.try_emplace(owner.host_offset.bytes, false);
        if (is_new) known->second = IsInDoubt(state, image, owner, *finding.host_offset);
        if (known->second) in_doubt.insert(*owner.snapshot);
      }
    }
  }
  if (named.empty() || table_in_doubt) return named;
  const uint64_t wanted = *std::max_element(named.begin(), named.end()) + 1;
  const uint64_t plausible =
      ReadPlausibleEntries(image, state.header.snapshots_offset, wanted).size();
  SnapshotL1Tables tables(state, image);
  for (const uint64_t snapshot : named) {
    if (snapshot >= plausible || tables.IsInDoubt(snapshot)) in_doubt.insert(snapshot);
  }
  return in_doubt;
}

bool SnapshotsAreInDoubt(const CheckState& state, const ImageFile& image) {
  for (const FindingCode code :
       {FindingCode::kSnapshotTableInvalid, FindingCode::kSnapshotTooMany,
        FindingCode::kSnapshotExtraTooLarge, FindingCode::kSnapshotL1Invalid,
        FindingCode::kSnapshotSizeMismatch}) {
    if (state.findings.Has(code)) return true;
  }
  const uint64_t wanted = state.header.nb_snapshots;
  if (ReadPlausibleEntries(image, state.header.snapshots_offset, wanted).size() != wanted) {
    return true;
  }
  SnapshotL1Tables tables(state, image);
  for (const Finding& finding : state.findings.findings()) {
    if (finding.structure == Structure::kSnapshotL1Table && finding.snapshot &&
        tables.IsInDoubt(*finding.snapshot)) {
      return true;
    }
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
