#include "repair/refcount_structures.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/refcount_block.h"

namespace qcow2check {
namespace {

constexpr uint64_t kTableOffsetField = 48;
constexpr uint64_t kRefcountOrderField = 96;

// Findings that only a new table or a new entry in it can repair.
constexpr FindingCode kTableDamage[] = {
    FindingCode::kRefcountTableInvalid,
    FindingCode::kRefcountTableEntryReservedBits,
    FindingCode::kRefcountBlockMisaligned,
    FindingCode::kRefcountBlockPastEnd,
};

}  // namespace

RefcountStructures::RefcountStructures(const CheckState& state, PlanBuilder& plan)
    : state_(state),
      plan_(plan),
      stored_(state, plan),
      space_(state, plan, stored_),
      uncounted_(UncountedTables(state)),
      old_order_(state.geo().refcount_order),
      order_(WantedOrder()),
      block_entries_(state.geo().cluster_size() * 8 >> order_),
      all_new_(order_ != old_order_),
      replaced_clusters_(state.file_clusters) {
  if (!TableIsUsable()) return;
  table_entries_ =
      uint64_t{state.header.refcount_table_clusters} * (state.geo().cluster_size() / 8);
}

bool RefcountStructures::TableIsUsable() const {
  // None of its entries leads to refcounts: it is probably something else, and nothing to write to.
  if (stored_.blocks().empty() &&
      (state_.findings.Has(FindingCode::kRefcountTableEntryReservedBits) ||
       state_.findings.Has(FindingCode::kRefcountBlockMisaligned))) {
    return false;
  }
  if (all_new_ || state_.findings.Has(FindingCode::kRefcountTableInvalid)) return false;
  const int bits = state_.geo().cluster_bits;
  const uint64_t first = state_.header.refcount_table_offset >> bits;
  const uint64_t end = first + state_.header.refcount_table_clusters;
  for (uint64_t cluster = first; cluster < end; ++cluster) {
    // Most are like this: no count of 64 is more than 1.
    uint64_t bits_of_64 = 0;
    if (IsAligned(cluster, 64) && state_.expected->BitWord(cluster, bits_of_64)) {
      cluster += 63;
    } else if (state_.expected->Get(cluster) > 1) {
      return false;
    }
  }
  return true;
}

// The narrowest width that can say how often every cluster is referenced, never less than now.
int RefcountStructures::WantedOrder() const {
  int order = old_order_;
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code != FindingCode::kRefcountOverflow || !finding.expected) continue;
    while (order < 6 && *finding.expected >> (uint64_t{1} << order) != 0) ++order;
  }
  return state_.header.version >= 3 ? order : old_order_;
}

bool RefcountStructures::NeedsRepair() const {
  if (!state_.refcounts_readable) return false;
  for (const FindingCode code : kTableDamage) {
    if (state_.findings.Has(code)) return true;
  }
  if (all_new_ || !TableIsUsable()) return true;
  for (const RefcountBlock& block : state_.refcount_blocks) {
    if (!stored_.BlockAt(block.table_index)) return true;
  }
  for (const Finding& finding : state_.findings.findings()) {
    const bool low = finding.code == FindingCode::kRefcountZeroInUse ||
                     finding.code == FindingCode::kRefcountLazy;
    if (low && finding.structure != Structure::kL2Table &&
        finding.structure != Structure::kL1Table && finding.host_offset &&
        !stored_.HasBlockFor(finding.host_offset->bytes >> state_.geo().cluster_bits)) {
      return true;
    }
  }
  return false;
}

// Every range of clusters in which something is in use.
void RefcountStructures::AddBlocksInUse() {
  for (uint64_t page = state_.expected->NextPage(0); page != kNoPage;
       page = state_.expected->NextPage(page + 1)) {
    const uint64_t begin = page * kPageClusters;
    const uint64_t end = std::min(begin + kPageClusters, state_.file_clusters + 1);
    for (uint64_t index = begin / block_entries_; index * block_entries_ < end; ++index) {
      const uint64_t first = std::max(begin, index * block_entries_);
      const uint64_t behind = std::min(end, (index + 1) * block_entries_);
      if (state_.expected->HasAny(first, behind - first)) needed_.insert(index);
    }
  }
}

// Every range of clusters in which something is in use or may be kept.
void RefcountStructures::AddNeededBlocks() {
  const int bits = state_.geo().cluster_bits;
  AddBlocksInUse();
  // Where refcounts are lost, what is in the file may be something that nothing refers to.
  const uint64_t block_bytes = SaturatingMultiply(block_entries_, state_.geo().cluster_size());
  const auto add_if_in_file = [&](uint64_t index) {
    const uint64_t begin = SaturatingMultiply(index, block_bytes);
    if (begin < state_.file.size_bytes()) needed_.insert(index);
  };
  if (all_new_ || state_.findings.Has(FindingCode::kRefcountTableInvalid)) {
    Extent data = state_.file.NextData(HostOffset{0});
    while (!data.empty()) {
      for (uint64_t i = data.begin_bytes / block_bytes; i <= (data.end_bytes - 1) / block_bytes;
           ++i) {
        needed_.insert(i);
      }
      data = state_.file.NextData(HostOffset{RoundUp(data.end_bytes, uint64_t{1} << bits)});
    }
  }
  for (const RefcountBlock& block : state_.refcount_blocks) {
    if (!stored_.BlockAt(block.table_index)) add_if_in_file(block.table_index);
  }
  ForEachDamagedEntry([&](uint64_t index, const Finding&) { add_if_in_file(index); });
}

// Table entries that lead to no block, or have reserved bits.
template <typename Visit>
void RefcountStructures::ForEachDamagedEntry(Visit visit) const {
  for (const Finding& finding : state_.findings.findings()) {
    if (finding.code != FindingCode::kRefcountTableEntryReservedBits &&
        finding.code != FindingCode::kRefcountBlockMisaligned &&
        finding.code != FindingCode::kRefcountBlockPastEnd) {
      continue;
    }
    for (uint64_t at = 0; at < finding.length_bytes; at += 8) {
      visit((finding.host_offset->bytes + at - state_.header.refcount_table_offset) / 8, finding);
    }
  }
}

// Finds places for new blocks and, if it must be larger or elsewhere, the table. Each new cluster
// may need another block for its own refcount.
bool RefcountStructures::PlaceBlocks(const PlanReason& reason) {
  const uint64_t cluster_size = state_.geo().cluster_size();
  while (true) {
    for (const auto& [cluster, refcount] : space_.taken()) {
      if (covered_.insert(cluster).second) needed_.insert(cluster / block_entries_);
    }
    bool placed = false;
    for (const uint64_t index : needed_) {
      const bool stays = !all_new_ && stored_.BlockAt(index).has_value();
      if (stays || new_blocks_.contains(index)) continue;
      const std::optional<uint64_t> cluster = space_.Take(1);
      if (!cluster) return false;
      new_blocks_[index] = *cluster;
      placed = true;
    }
    const uint64_t last_index = needed_.empty() ? 0 : *needed_.rbegin();
    const uint64_t last_block = stored_.blocks().empty() ? 0 : stored_.blocks().rbegin()->first;
    const uint64_t entries = std::max(last_index, all_new_ ? 0 : last_block) + 1;
    const uint64_t clusters = DivideRoundingUp(entries * 8, cluster_size);
    const bool table_fits =
        new_table_ ? clusters <= new_table_clusters_ : entries <= table_entries_;
    if (!table_fits) {
      if (clusters * cluster_size > kQemuMaxRefcountTableBytes) {
        plan_.Decline(reason.code, reason.finding_offset,
                      "the refcount table would be larger than QEMU accepts");
        return false;
      }
      // Room for the blocks that the table's own clusters may need.
      new_table_clusters_ = DivideRoundingUp((entries + 2) * 8, cluster_size);
      new_table_ = space_.Take(new_table_clusters_);
      if (!new_table_) return false;
      placed = true;
    }
    if (!placed) return true;
  }
}

bool RefcountStructures::Commit(const PlanReason& reason) {
  if (!state_.refcounts_readable) return false;
  AddNeededBlocks();
  if (!PlaceBlocks(reason)) {
    if (space_.missing_bytes() != 0) {
      plan_.Decline(reason.code, reason.finding_offset,
                    absl::StrFormat("%d bytes short: there is no free room for new structures",
                                    space_.missing_bytes()));
    }
    return false;
  }
  FindReplaced();
  for (const auto& [index, cluster] : new_blocks_) {
    WriteBlock(index, cluster, reason);
    if (!all_new_) plan_.ExpectOldBlock(index);
  }
  for (const auto& [cluster, refcount] : space_.taken()) {
    if (!all_new_ && !new_blocks_.contains(cluster / block_entries_)) {
      stored_.Set(cluster, 1, refcount, reason);
    }
  }
  plan_.Flush();
  if (!new_table_) {
    SwitchEntries(reason);
    plan_.Flush();
    return true;
  }
  SwitchTable(reason);
  plan_.Flush();
  if (!all_new_ && table_entries_ != 0) {
    const uint64_t table = state_.header.refcount_table_offset;
    Free(table, table + table_entries_ * 8, reason);
  }
  return true;
}

void RefcountStructures::Free(uint64_t begin_bytes, uint64_t end_bytes, const PlanReason& reason) {
  const int bits = state_.geo().cluster_bits;
  for (uint64_t cluster = begin_bytes >> bits; cluster << bits < end_bytes; ++cluster) {
    if (!all_new_ && state_.expected->Get(cluster) == 1) stored_.Set(cluster, 1, 0, reason);
  }
  plan_.Flush();
}

// References to clusters by what the new structures take the place of: blocks that cannot be used;
// with another width, the old table and all its blocks.
void RefcountStructures::FindReplaced() {
  const int bits = state_.geo().cluster_bits;
  replaced_.clear();
  if (!all_new_) {
    for (const RefcountBlock& block : state_.refcount_blocks) {
      if (!stored_.BlockAt(block.table_index)) ++replaced_[block.offset_bytes >> bits];
    }
  } else {
    for (const auto& [index, offset] : stored_.blocks()) replaced_[offset >> bits] = 1;
    const bool table_is_known = !state_.findings.Has(FindingCode::kRefcountTableInvalid);
    const uint64_t table = state_.header.refcount_table_offset >> bits;
    const uint64_t clusters = table_is_known ? state_.header.refcount_table_clusters : 0;
    for (uint64_t i = 0; i < clusters && table + i <= state_.file_clusters; ++i) {
      replaced_[table + i] = 1;
    }
    // What something else uses, too, is not given up.
    absl::erase_if(replaced_, [this](const auto& replaced) {
      return replaced.first > state_.file_clusters || state_.expected->Get(replaced.first) != 1;
    });
  }
  for (const auto& [cluster, references] : replaced_) {
    if (cluster < state_.file_clusters) replaced_clusters_.Insert(cluster);
  }
}

// Whether each of the 64 clusters has one reference, and keeps it. None of them was free to be
// taken.
bool RefcountStructures::AllAreOnes(uint64_t first_cluster) const {
  uint64_t bits = 0;
  return first_cluster + 64 <= state_.file_clusters &&
         replaced_clusters_.Word(first_cluster) == 0 &&
         state_.expected->BitWord(first_cluster, bits) && bits == ~uint64_t{0};
}

// What a new block says of a cluster. Clusters that nothing references but that hold something
// keep a refcount: the check that follows sees them as orphans, and says which of them may go.
uint64_t RefcountStructures::CountFor(uint64_t cluster, ZeroSearch& zeros) const {
  if (const auto taken = space_.taken().find(cluster); taken != space_.taken().end()) {
    return taken->second;
  }
  const bool trusted = all_new_ && stored_.HasBlockFor(cluster);
  const uint64_t stored = trusted ? stored_.Get(cluster) : 0;
  const uint64_t counted = cluster <= state_.file_clusters ? state_.expected->Get(cluster) : 0;
  const auto replaced = replaced_.find(cluster);
  const uint64_t ends = replaced == replaced_.end() ? 0 : replaced->second;
  const uint64_t expected = counted - std::min(counted, ends);
  if (all_new_ && ends != 0) return 0;
  if (expected != 0) return trusted ? std::max(expected, stored) : expected;
  if (trusted) return stored;
  if (cluster >= state_.file_clusters) return 0;
  const uint64_t begin = cluster << state_.geo().cluster_bits;
  const uint64_t size = state_.geo().cluster_size();
  if (uncounted_.Touches(begin, begin + size)) return 1;
  return zeros.ReadsAsZeros(begin, size) ? 0 : 1;
}

void RefcountStructures::WriteBlock(uint64_t table_index, uint64_t cluster,
                                    const PlanReason& reason) {
  const uint64_t cluster_size = state_.geo().cluster_size();
  const uint64_t max = order_ == 6 ? kSaturated : (uint64_t{1} << (uint64_t{1} << order_)) - 1;
  std::vector<uint8_t> bytes(cluster_size);
  const uint64_t first = table_index * block_entries_;
  const uint64_t end_of_file = plan_.image().size_bytes() >> state_.geo().cluster_bits;
  ZeroSearch zeros(plan_.image());
  for (uint64_t i = 0; i < block_entries_ && first + i <= end_of_file; ++i) {
    // Most are like this. With another width, old counts may say more.
    if (i % 64 == 0 && !all_new_ && AllAreOnes(first + i)) {
      for (uint64_t j = 0; j < 64; ++j) StoreRefcount(bytes.data(), i + j, order_, 1);
      i += 63;
      continue;
    }
    const uint64_t count = CountFor(first + i, zeros);
    if (count != 0) StoreRefcount(bytes.data(), i, order_, std::min(count, max));
  }
  plan_.Write(cluster * cluster_size, bytes, reason);
}

// The new table is complete before the header points to it. Table offset, size and, in the same
// sector, the width change in one write.
void RefcountStructures::SwitchTable(const PlanReason& reason) {
  const int bits = state_.geo().cluster_bits;
  std::vector<uint8_t> table(new_table_clusters_ << bits);
  if (!all_new_) {
    for (const auto& [index, offset] : stored_.blocks()) Store64(&table[index * 8], offset);
  }
  for (const auto& [index, cluster] : new_blocks_) Store64(&table[index * 8], cluster << bits);
  plan_.Write(*new_table_ << bits, table, reason);
  plan_.Flush();
  const uint64_t end = all_new_ ? kRefcountOrderField + 4 : kTableOffsetField + 12;
  std::vector<uint8_t> header(end - kTableOffsetField);
  if (!plan_.image().ReadAt(HostOffset{kTableOffsetField}, absl::MakeSpan(header)).ok()) return;
  Store64(header.data(), *new_table_ << bits);
  Store32(&header[8], static_cast<uint32_t>(new_table_clusters_));
  if (all_new_)
    Store32(&header[kRefcountOrderField - kTableOffsetField], static_cast<uint32_t>(order_));
  plan_.Write(kTableOffsetField, header, reason);
}

void RefcountStructures::SwitchEntries(const PlanReason& reason) {
  const int bits = state_.geo().cluster_bits;
  const uint64_t table = state_.header.refcount_table_offset;
  for (const auto& [index, cluster] : new_blocks_) {
    plan_.Write64(table + index * 8, cluster << bits, reason);
  }
  for (const RefcountBlock& block : state_.refcount_blocks) {
    if (stored_.BlockAt(block.table_index) || new_blocks_.contains(block.table_index)) continue;
    plan_.Write64(table + block.table_index * 8, 0, reason);
  }
  ForEachDamagedEntry([&](uint64_t index, const Finding& finding) {
    if (new_blocks_.contains(index)) return;
    plan_.Write64(table + index * 8, stored_.BlockAt(index).value_or(0),
                  ReasonFor(finding, "the entry leads to no refcount block, or has reserved bits"));
  });
}

}  // namespace qcow2check
