// The L2 pass: every entry of every distinct L2 table (specification, "Cluster mapping").
//
// Needs the list of L2 tables with their weights; all other metadata must have been counted.
// Makes the expected refcounts of guest clusters, the sets of clusters that need a second look,
// and the statistics. Each table is read once. Cost: a few operations for each entry; the fast
// path below handles tables in which nothing is special.
#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "checker/table_reader.h"
#include "checker/table_shape.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

class L2Walk {
 public:
  explicit L2Walk(CheckState& state)
      : state_(state),
        geometry_(state.geo()),
        cluster_bits_(state.geo().cluster_bits),
        cluster_size_(state.geo().cluster_size()),
        file_bytes_(state.file.size_bytes()) {}

  void Run() {
    TableReader reader(state_);
    reader.ReadAll(absl::MakeSpan(state_.l2_tables),
                   [this](L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) {
                     WalkSlice(table, begin, bytes);
                   });
    state_.coverage.l2_tables = state_.l2_tables.size();
  }

 private:
  void WalkSlice(L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes);
  bool IsPlain(const L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) const;
  void WalkPlain(absl::Span<const uint8_t> bytes);
  void WalkSpecial(absl::Span<const uint8_t> bytes);
  void WalkEntry(uint64_t entry, uint64_t bitmap_word);
  void WalkCompressed(uint64_t entry, uint64_t bitmap_word);
  void WalkStandard(uint64_t entry, uint64_t bitmap_word, L2EntryKind kind);
  void CheckStandardFlags(uint64_t entry, uint64_t bitmap_word, L2EntryKind kind);
  void CountGuestCluster(uint64_t entry);
  void MarkCopied(uint64_t entry, uint64_t cluster);
  void ReportLost(const L2Table& table, absl::Span<const uint8_t> bytes, const TableScan& scan);
  void Add(FindingCode code, uint64_t count, std::string detail,
           std::optional<uint64_t> expected = std::nullopt);
  std::optional<HostOffset> Target() const;

  // Whether the table before this one in the group has the same entry: the same guest cluster
  // at the same host cluster, which is sharing between snapshots and no collision.
  bool SameAsNeighbour(uint64_t at, uint64_t offset) const {
    if (neighbour_ == nullptr) return false;
    const uint64_t entry = Load64(neighbour_ + at);
    return !IsCompressed(entry) && EntryOffset(entry) == offset;
  }

  void CountFragment(uint64_t offset) {
    if (next_offset_ != 0 && offset != next_offset_) {
      state_.statistics.fragmented_clusters += table_->active_weight;
    }
    next_offset_ = offset + cluster_size_;
  }

  CheckState& state_;
  const Geometry& geometry_;
  const int cluster_bits_;
  const uint64_t cluster_size_;
  const uint64_t file_bytes_;

  // The slice at hand.
  L2Table* table_ = nullptr;
  uint64_t slice_begin_ = 0;
  const uint8_t* neighbour_ = nullptr;
  uint64_t neighbour_l1_index_ = 0;
  uint64_t neighbour_slice_ = 0;
  const uint8_t* last_bytes_ = nullptr;
  uint64_t next_offset_ = 0;  // where the next cluster is if nothing is fragmented
  uint64_t at_ = 0;           // byte position of the entry at hand in the slice
  uint64_t entry_ = 0;
  bool cut_reported_ = false;
};

std::optional<HostOffset> L2Walk::Target() const {
  if (IsCompressed(entry_)) {
    return HostOffset{DecodeCompressed(entry_, cluster_bits_).offset_bytes};
  }
  if (EntryOffset(entry_) == 0) return std::nullopt;
  return HostOffset{EntryOffset(entry_)};
}

void L2Walk::Add(FindingCode code, uint64_t count, std::string detail,
                 std::optional<uint64_t> expected) {
  const uint64_t index = (slice_begin_ + at_) / geometry_.l2_entry_bytes();
  state_.findings.Add({.code = code,
                       .structure = Structure::kL2Table,
                       .host_offset = HostOffset{table_->offset_bytes + slice_begin_ + at_},
                       .length_bytes = geometry_.l2_entry_bytes(),
                       .clusters = 1,
                       .count = count,
                       .guest_offset = geometry_.GuestOffsetOf(table_->l1_index, index),
                       .guest_length_bytes = cluster_size_,
                       .l1_index = table_->l1_index,
                       .l2_index = index,
                       .snapshot = table_->snapshot,
                       .target = Target(),
                       .stored = entry_,
                       .expected = expected,
                       .detail = std::move(detail)});
}

void L2Walk::WalkSlice(L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) {
  const bool same_group =
      last_bytes_ != nullptr && neighbour_l1_index_ == table.l1_index && neighbour_slice_ == begin;
  neighbour_ = same_group ? last_bytes_ : nullptr;
  neighbour_l1_index_ = table.l1_index;
  neighbour_slice_ = begin;
  last_bytes_ = nullptr;
  if (table.shape == L2Shape::kLost) return;
  table_ = &table;
  slice_begin_ = begin;
  if (begin == 0) next_offset_ = 0;
  if (IsPlain(table, begin, bytes)) {
    WalkPlain(bytes);
  } else {
    const TableScan scan = ScanTable(bytes, geometry_, file_bytes_);
    if (IsNoTable(scan)) {
      ReportLost(table, bytes, scan);
      table.shape = L2Shape::kLost;
      return;
    }
    WalkSpecial(bytes);
  }
  last_bytes_ = bytes.data();
}

// Nothing but unallocated and normal entries that point into the file, and no guest cluster
// behind the end of the disk. One loop without branches, which the compiler vectorises.
bool L2Walk::IsPlain(const L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) const {
  if (geometry_.extended_l2 || geometry_.data_file) return false;
  const uint64_t guest_end =
      geometry_.GuestOffsetOf(table.l1_index, (begin + bytes.size()) / 8).bytes;
  if (table.active_weight != 0 &&
      guest_end > RoundUp(geometry_.virtual_size_bytes, cluster_size_)) {
    return false;
  }
  uint64_t seen = 0, highest = 0, without_offset = 0;
  for (uint64_t at = 0; at < bytes.size(); at += 8) {
    const uint64_t entry = Load64(&bytes[at]);
    seen |= entry;
    highest = std::max(highest, entry & kOffsetMask);
    without_offset |= (entry & kOffsetMask) == 0 ? entry : 0;
  }
  const uint64_t special =
      kCompressedBit | kStandardL2ReservedMask | kZeroBit | ((cluster_size_ - 1) & kOffsetMask);
  return (seen & special) == 0 && without_offset == 0 && highest + cluster_size_ <= file_bytes_;
}

void L2Walk::WalkPlain(absl::Span<const uint8_t> bytes) {
  uint64_t allocated = 0, last_used = 0;
  for (at_ = 0; at_ < bytes.size(); at_ += 8) {
    const uint64_t entry = Load64(&bytes[at_]);
    if (entry == 0) continue;
    ++allocated;
    last_used = at_ / 8;
    CountFragment(EntryOffset(entry));
    CountGuestCluster(entry);
  }
  if (allocated == 0) return;
  state_.statistics.allocated_clusters += allocated * table_->active_weight;
  table_->shape = L2Shape::kMappings;
  table_->last_used = static_cast<uint32_t>(slice_begin_ / 8 + last_used);
}

void L2Walk::CountGuestCluster(uint64_t entry) {
  const uint64_t offset = EntryOffset(entry);
  const uint64_t cluster = offset >> cluster_bits_;
  if (!state_.expected->Add(cluster, table_->weight) && !SameAsNeighbour(at_, offset)) {
    state_.collisions->Insert(cluster);
  }
  MarkCopied(entry, cluster);
}

// Whether COPIED is right can only be said when all references are counted; remember the claim.
void L2Walk::MarkCopied(uint64_t entry, uint64_t cluster) {
  if (table_->active_weight == 0) return;
  (IsCopied(entry) ? state_.copied : state_.not_copied)->Insert(cluster);
}

void L2Walk::ReportLost(const L2Table& table, absl::Span<const uint8_t> bytes,
                        const TableScan& scan) {
  const uint64_t first_index = slice_begin_ / geometry_.l2_entry_bytes();
  const std::string content = scan.repeated != 0 && scan.malformed == 0
                                  ? absl::StrFormat("one value %d times (%s)", scan.repeated,
                                                    DescribeContent(bytes, geometry_))
                                  : DescribeContent(bytes, geometry_);
  state_.findings.Add(
      {.code = FindingCode::kL2TableLost,
       .structure = Structure::kL2Table,
       .host_offset = HostOffset{table.offset_bytes + slice_begin_},
       .length_bytes = bytes.size(),
       .clusters = 1,
       .guest_offset = geometry_.GuestOffsetOf(table.l1_index, first_index),
       .guest_length_bytes = bytes.size() / geometry_.l2_entry_bytes() * cluster_size_,
       .l1_index = table.l1_index,
       .snapshot = table.snapshot,
       .detail = absl::StrFormat("the cluster at 0x%x holds %s", table.offset_bytes, content)});
  state_.Skip(absl::StrFormat("the L2 table at 0x%x", table.offset_bytes),
              absl::StrFormat("it holds %s", content));
}

void L2Walk::WalkSpecial(absl::Span<const uint8_t> bytes) {
  const uint64_t step = geometry_.l2_entry_bytes();
  for (at_ = 0; at_ < bytes.size(); at_ += step) {
    entry_ = Load64(&bytes[at_]);
    const uint64_t bitmap_word = geometry_.extended_l2 ? Load64(&bytes[at_ + 8]) : 0;
    if (entry_ == 0 && bitmap_word == 0) continue;
    table_->last_used = static_cast<uint32_t>((slice_begin_ + at_) / step);
    WalkEntry(entry_, bitmap_word);
  }
}

void L2Walk::WalkEntry(uint64_t entry, uint64_t bitmap_word) {
  const L2EntryKind kind = KindOfL2Entry(entry, geometry_);
  if (kind == L2EntryKind::kCompressed || kind == L2EntryKind::kNormal ||
      kind == L2EntryKind::kZeroAllocated) {
    table_->shape = L2Shape::kMappings;
    const uint64_t index = (slice_begin_ + at_) / geometry_.l2_entry_bytes();
    if (table_->active_weight != 0 &&
        geometry_.GuestOffsetOf(table_->l1_index, index).bytes >= geometry_.virtual_size_bytes) {
      Add(FindingCode::kDataPastVirtualEnd, 1, "");
    }
  }
  if (kind == L2EntryKind::kCompressed) {
    WalkCompressed(entry, bitmap_word);
    return;
  }
  CheckStandardFlags(entry, bitmap_word, kind);
  if (kind == L2EntryKind::kNormal || kind == L2EntryKind::kZeroAllocated) {
    WalkStandard(entry, bitmap_word, kind);
  }
}

void L2Walk::CheckStandardFlags(uint64_t entry, uint64_t bitmap_word, L2EntryKind kind) {
  if ((entry & kStandardL2ReservedMask) != 0) {
    Add(FindingCode::kL2EntryReservedBits, table_->weight, "", entry & ~kStandardL2ReservedMask);
  }
  const bool has_cluster = kind == L2EntryKind::kNormal || kind == L2EntryKind::kZeroAllocated;
  if (geometry_.extended_l2) {
    const SubclusterBitmap bitmap = DecodeSubclusterBitmap(bitmap_word);
    if ((entry & kZeroBit) != 0 || (!has_cluster && IsCopied(entry))) {
      Add(FindingCode::kStrayL2Flag, 1, "");
    }
    if (has_cluster && (bitmap.allocated & bitmap.reads_as_zeros) != 0) {
      Add(FindingCode::kSubclusterConflict, table_->weight,
          absl::StrFormat("subclusters 0x%08x", bitmap.allocated & bitmap.reads_as_zeros));
    }
    if (!has_cluster && bitmap.allocated != 0) {
      Add(FindingCode::kSubclusterWithoutCluster, table_->weight,
          absl::StrFormat("subclusters 0x%08x", bitmap.allocated));
    }
    return;
  }
  // In a data file a zero cluster without an offset may be the one at offset 0, which COPIED tells.
  if (!has_cluster && IsCopied(entry) && !geometry_.data_file) {
    Add(FindingCode::kStrayL2Flag, 1, "");
  }
  if (geometry_.version < 3 && (entry & kZeroBit) != 0) {
    Add(FindingCode::kZeroFlagNotAllowed, table_->weight, "", entry & ~kZeroBit);
  }
}

void L2Walk::WalkCompressed(uint64_t entry, uint64_t bitmap_word) {
  const CompressedRange range = DecodeCompressed(entry, cluster_bits_);
  if (IsCopied(entry)) {
    Add(FindingCode::kCompressedCopied, table_->weight, "", entry & ~kCopiedBit);
  }
  if (geometry_.data_file) {
    Add(FindingCode::kCompressedInDataFile, table_->weight, "");
    return;
  }
  if (bitmap_word != 0) {
    Add(FindingCode::kCompressedSubclusters, table_->weight,
        absl::StrFormat("0x%016x", bitmap_word));
  }
  state_.statistics.allocated_clusters += table_->active_weight;
  state_.statistics.compressed_clusters += table_->active_weight;
  state_.statistics.fragmented_clusters += table_->active_weight;
  if (state_.IsOutside(range.offset_bytes, range.length_bytes)) {
    Add(FindingCode::kCompressedPastEnd, table_->weight,
        absl::StrFormat("the file ends at 0x%x", file_bytes_));
    for (uint64_t cluster = range.offset_bytes >> cluster_bits_;
         cluster <= (range.end_bytes() - 1) >> cluster_bits_ && cluster < state_.tracked_clusters;
         ++cluster) {
      if (cluster >= state_.file_clusters) state_.past_end->Insert(cluster);
    }
    return;
  }
  if (range.end_bytes() >= file_bytes_ + kSectorBytes) {
    Add(FindingCode::kCutByEndOfFile, 1, "the last sectors of a compressed cluster are missing");
  }
  const uint64_t last = (range.end_bytes() - 1) >> cluster_bits_;
  for (uint64_t cluster = range.offset_bytes >> cluster_bits_; cluster <= last; ++cluster) {
    // Compressed clusters share host clusters by design.
    if (!state_.expected->Add(cluster, table_->weight) && !state_.compressed->Contains(cluster)) {
      state_.collisions->Insert(cluster);
    }
    state_.compressed->Insert(cluster);
  }
}

void L2Walk::WalkStandard(uint64_t entry, uint64_t bitmap_word, L2EntryKind kind) {
  const uint64_t offset = EntryOffset(entry);
  state_.statistics.allocated_clusters += table_->active_weight;
  CountFragment(offset);
  const bool holds_data = geometry_.extended_l2 ? DecodeSubclusterBitmap(bitmap_word).allocated != 0
                                                : kind == L2EntryKind::kNormal;
  const bool aligned = IsAligned(offset, cluster_size_);
  if (!aligned) {
    const uint64_t rounded = offset & ~(cluster_size_ - 1);
    Add(holds_data ? FindingCode::kDataMisaligned : FindingCode::kZeroClusterMisaligned,
        table_->weight, "",
        holds_data ? std::optional<uint64_t>((entry & ~kOffsetMask) | rounded) : std::nullopt);
  }
  if (geometry_.data_file) {
    // Guest clusters in the data file have no refcounts: COPIED is always set.
    if (!IsCopied(entry) && table_->active_weight != 0) {
      Add(FindingCode::kCopiedWrong, table_->active_weight, "", entry | kCopiedBit);
    }
    return;
  }
  const uint64_t cluster = offset >> cluster_bits_;
  if (state_.IsOutside(offset, cluster_size_)) {
    Add(holds_data ? FindingCode::kDataPastEnd : FindingCode::kZeroClusterPastEnd, table_->weight,
        absl::StrFormat("the file ends at 0x%x", file_bytes_));
    if (cluster < state_.tracked_clusters) {
      state_.past_end->Insert(cluster);
      MarkCopied(entry, cluster);
    } else if (table_->active_weight != 0 && IsCopied(entry) && state_.refcounts_readable) {
      // Too far away for any refcount to be looked up: it is 0, and COPIED promises 1.
      Add(FindingCode::kCopiedWrong, table_->active_weight, "");
    }
    return;
  }
  if (aligned && offset + cluster_size_ > file_bytes_ && !cut_reported_) {
    cut_reported_ = true;
    Add(FindingCode::kCutByEndOfFile, 1, "a guest cluster");
  }
  CountGuestCluster(entry);
  // A misaligned entry reaches into the next cluster, too; qemu-img counts both.
  if (!aligned && !state_.expected->Add(cluster + 1, table_->weight)) {
    state_.collisions->Insert(cluster + 1);
  }
}

}  // namespace

void CheckL2Tables(CheckState& state) { L2Walk(state).Run(); }

}  // namespace qcow2check
