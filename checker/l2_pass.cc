// The L2 pass: every entry of every distinct L2 table (specification, "Cluster mapping").
//
// Needs the list of L2 tables with their weights; all other metadata must have been counted.
// Makes the expected refcounts of guest clusters, the sets of clusters that need a second look,
// and the statistics. Each table is read once; parts of the list are walked by several threads and
// their results added up. Cost: a few operations for each entry; the fast path below handles tables
// in which nothing is special, and there a run of consecutive clusters at a time.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "checker/guest_counts.h"
#include "checker/table_reader.h"
#include "checker/table_shape.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/ordered_jobs.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

// What a part of the tables makes, besides counts.
struct L2Part {
  PartNotes notes;
  Statistics statistics;
  std::optional<Finding> cut_by_end;  // the first guest cluster that the end of the file cuts
  uint64_t tables = 0;
};

// Entries of a table that map consecutive clusters with the same flags.
struct Run {
  uint64_t first_entry = 0;
  uint64_t at = 0;  // byte position in the slice
  uint64_t length = 0;
};

// One thread's walk through some of the parts.
class L2Walk {
 public:
  explicit L2Walk(const CheckState& state)
      : state_(state),
        geometry_(state.geo()),
        cluster_bits_(state.geo().cluster_bits),
        cluster_size_(state.geo().cluster_size()),
        file_bytes_(state.file.size_bytes()),
        reader_(state),
        counts_(state) {}

  L2Part Walk(absl::Span<L2Table> tables) {
    L2Part part = {.notes = state_.NewPart(), .statistics = {}, .cut_by_end = std::nullopt};
    if (!state_.MayGoOn()) return part;
    part.tables = tables.size();
    part_ = &part;
    last_bytes_ = nullptr;
    reader_.Read(tables, part.notes,
                 [this](L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) {
                   WalkSlice(table, begin, bytes);
                 });
    return part;
  }

  GuestCounts& counts() { return counts_; }

 private:
  void WalkSlice(L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes);
  bool FindRuns(const L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes);
  void WalkRuns();
  void CountRun(const Run& run);
  void WalkSpecial(absl::Span<const uint8_t> bytes);
  bool IsBehindDisk(GuestOffset offset) const;
  void WalkEntry(uint64_t entry, uint64_t bitmap_word);
  void WalkCompressed(uint64_t entry, uint64_t bitmap_word);
  void WalkStandard(uint64_t entry, uint64_t bitmap_word, L2EntryKind kind);
  void CheckStandardFlags(uint64_t entry, uint64_t bitmap_word, L2EntryKind kind);
  void CountGuestCluster(uint64_t entry);
  void MarkCopied(uint64_t entry, uint64_t cluster);
  void ReportLost(const L2Table& table, absl::Span<const uint8_t> bytes, const TableScan& scan);
  Finding FindingHere(FindingCode code, uint64_t count, std::string detail) const;
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
  bool IsSameAsNeighbour(const Run& run) const;

  void CountFragment(uint64_t offset) {
    if (next_offset_ != 0 && offset != next_offset_) {
      part_->statistics.fragmented_clusters += table_->active_weight;
    }
    next_offset_ = offset + cluster_size_;
  }

  const CheckState& state_;
  const Geometry& geometry_;
  const int cluster_bits_;
  const uint64_t cluster_size_;
  const uint64_t file_bytes_;
  TableReader reader_;
  GuestCounts counts_;
  L2Part* part_ = nullptr;

  // The slice at hand.
  L2Table* table_ = nullptr;
  uint64_t slice_begin_ = 0;
  const uint8_t* neighbour_ = nullptr;
  uint64_t neighbour_l1_index_ = 0;
  uint64_t neighbour_slice_ = 0;
  const uint8_t* last_bytes_ = nullptr;
  std::vector<Run> runs_;
  uint64_t next_offset_ = 0;  // where the next cluster is if nothing is fragmented
  uint64_t at_ = 0;           // byte position of the entry at hand in the slice
  uint64_t entry_ = 0;
};

std::optional<HostOffset> L2Walk::Target() const {
  if (IsCompressed(entry_)) {
    return HostOffset{DecodeCompressed(entry_, cluster_bits_).offset_bytes};
  }
  if (EntryOffset(entry_) == 0) return std::nullopt;
  return HostOffset{EntryOffset(entry_)};
}

Finding L2Walk::FindingHere(FindingCode code, uint64_t count, std::string detail) const {
  const uint64_t index = (slice_begin_ + at_) / geometry_.l2_entry_bytes();
  return {.code = code,
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
          .detail = std::move(detail)};
}

void L2Walk::Add(FindingCode code, uint64_t count, std::string detail,
                 std::optional<uint64_t> expected) {
  Finding finding = FindingHere(code, count, std::move(detail));
  finding.expected = expected;
  part_->notes.Add(std::move(finding));
}

void L2Walk::WalkSlice(L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) {
  const bool same_group =
      last_bytes_ != nullptr && neighbour_l1_index_ == table.l1_index && neighbour_slice_ == begin;
  neighbour_ = same_group ? last_bytes_ : nullptr;
  neighbour_l1_index_ = table.l1_index;
  neighbour_slice_ = begin;
  last_bytes_ = nullptr;
  if (table.shape == L2Shape::kLost || bytes.empty() || state_.memory->exceeded()) return;
  table_ = &table;
  slice_begin_ = begin;
  if (begin == 0) next_offset_ = 0;
  if (FindRuns(table, begin, bytes)) {
    WalkRuns();
  } else {
    const TableScan scan = ScanTable(bytes, geometry_, file_bytes_);
    if (IsNoTable(scan, table.is_refcount_block)) {
      ReportLost(table, bytes, scan);
      table.shape = L2Shape::kLost;
      return;
    }
    WalkSpecial(bytes);
  }
  last_bytes_ = bytes.data();
}

// How many of the next `most` entries continue the first one: the same flags, the next cluster.
uint64_t RunLength(const uint8_t* entries, uint64_t most, uint64_t cluster_size) {
  constexpr uint64_t kStride = 8;
  const uint64_t first = Load64(entries);
  const auto differs = [&](uint64_t i) {
    return Load64(entries + i * 8) ^ (first + i * cluster_size);
  };
  uint64_t length = 1;
  if (most == 1 || differs(1) != 0) return 1;
  while (length + kStride <= most) {
    uint64_t difference = 0;
    for (uint64_t i = length; i < length + kStride; ++i) difference |= differs(i);
    if (difference != 0) break;
    length += kStride;
  }
  while (length < most && differs(length) == 0) ++length;
  return length;
}

// Finds the runs of consecutive clusters in a table with nothing but unallocated and normal entries
// that point into the file, and no guest cluster behind the end of the disk. False if it has
// others.
bool L2Walk::FindRuns(const L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) {
  if (geometry_.extended_l2 || geometry_.data_file) return false;
  const uint64_t guest_end =
      geometry_.GuestOffsetOf(table.l1_index, (begin + bytes.size()) / 8).bytes;
  if (table.active_weight != 0 &&
      guest_end > RoundUp(geometry_.virtual_size_bytes, cluster_size_)) {
    return false;
  }
  const uint64_t special =
      kCompressedBit | kStandardL2ReservedMask | kZeroBit | ((cluster_size_ - 1) & kOffsetMask);
  runs_.clear();
  for (uint64_t at = 0; at < bytes.size();) {
    const uint64_t entry = Load64(&bytes[at]);
    if (entry == 0) {
      at += 8;
      continue;
    }
    const uint64_t length = RunLength(&bytes[at], (bytes.size() - at) / 8, cluster_size_);
    // The flags of the first entry are those of all: a run that stays in the file does not carry
    // into them.
    const uint64_t offset = EntryOffset(entry);
    const uint64_t run_bytes = length * cluster_size_;
    if ((entry & special) != 0 || offset == 0 || run_bytes > file_bytes_ ||
        offset > file_bytes_ - run_bytes) {
      return false;
    }
    runs_.push_back({entry, at, length});
    at += length * 8;
  }
  return true;
}

void L2Walk::WalkRuns() {
  uint64_t allocated = 0;
  for (const Run& run : runs_) {
    at_ = run.at;
    CountFragment(EntryOffset(run.first_entry));
    next_offset_ += (run.length - 1) * cluster_size_;
    if (run.length == 1) {
      CountGuestCluster(run.first_entry);
    } else {
      CountRun(run);
    }
    allocated += run.length;
  }
  if (allocated == 0) return;
  part_->statistics.allocated_clusters += allocated * table_->active_weight;
  table_->shape = L2Shape::kMappings;
  const Run& last = runs_.back();
  table_->last_used = static_cast<uint32_t>((slice_begin_ + last.at) / 8 + last.length - 1);
}

bool L2Walk::IsSameAsNeighbour(const Run& run) const {
  uint64_t difference = 0;
  for (uint64_t i = 0; i < run.length; ++i) {
    difference |= Load64(neighbour_ + run.at + i * 8) ^ (run.first_entry + i * cluster_size_);
  }
  return (difference & (kOffsetMask | kCompressedBit)) == 0;
}

void L2Walk::CountRun(const Run& run) {
  const uint64_t first = EntryOffset(run.first_entry) >> cluster_bits_;
  const bool shared = neighbour_ != nullptr && IsSameAsNeighbour(run);
  if (!shared && counts_.standard.HasAny(first, run.length)) {
    for (uint64_t i = 0; i < run.length; ++i, at_ += 8) {
      CountGuestCluster(run.first_entry + i * cluster_size_);
    }
    return;
  }
  counts_.standard.AddRun(first, run.length, table_->weight);
  if (table_->active_weight != 0) {
    (IsCopied(run.first_entry) ? counts_.copied : counts_.not_copied).InsertRun(first, run.length);
  }
}

void L2Walk::CountGuestCluster(uint64_t entry) {
  const uint64_t offset = EntryOffset(entry);
  const uint64_t cluster = offset >> cluster_bits_;
  if (!counts_.standard.Add(cluster, table_->weight) && !SameAsNeighbour(at_, offset)) {
    counts_.collisions.Insert(cluster);
  }
  MarkCopied(entry, cluster);
}

// Whether COPIED is right can only be said when all references are counted; remember the claim.
void L2Walk::MarkCopied(uint64_t entry, uint64_t cluster) {
  if (table_->active_weight == 0) return;
  (IsCopied(entry) ? counts_.copied : counts_.not_copied).Insert(cluster);
}

void L2Walk::ReportLost(const L2Table& table, absl::Span<const uint8_t> bytes,
                        const TableScan& scan) {
  const uint64_t first_index = slice_begin_ / geometry_.l2_entry_bytes();
  const std::string content = scan.repeated != 0 && scan.malformed == 0
                                  ? absl::StrFormat("one value %d times (%s)", scan.repeated,
                                                    DescribeContent(bytes, geometry_))
                                  : DescribeContent(bytes, geometry_);
  part_->notes.Add(
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
  part_->notes.Skip(absl::StrFormat("the L2 table at 0x%x", table.offset_bytes),
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

// A disk that was reverted to a snapshot with VM state maps that state behind its end.
bool L2Walk::IsBehindDisk(GuestOffset offset) const {
  const uint64_t vm_state_begin = RoundUp(geometry_.virtual_size_bytes, geometry_.l2_guest_bytes());
  const bool is_vm_state =
      offset.bytes >= vm_state_begin && offset.bytes < state_.vm_state_end_bytes;
  return offset.bytes >= geometry_.virtual_size_bytes && !is_vm_state;
}

void L2Walk::WalkEntry(uint64_t entry, uint64_t bitmap_word) {
  const L2EntryKind kind = KindOfL2Entry(entry, geometry_);
  if (kind == L2EntryKind::kCompressed || kind == L2EntryKind::kNormal ||
      kind == L2EntryKind::kZeroAllocated) {
    table_->shape = L2Shape::kMappings;
    const uint64_t index = (slice_begin_ + at_) / geometry_.l2_entry_bytes();
    if (table_->active_weight != 0 &&
        IsBehindDisk(geometry_.GuestOffsetOf(table_->l1_index, index))) {
      Add(FindingCode::kDataPastVirtualEnd, 1, "");
    }
  } else if (kind == L2EntryKind::kZeroPlain && table_->shape == L2Shape::kNoMappings) {
    table_->shape = L2Shape::kZeros;
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
  part_->statistics.allocated_clusters += table_->active_weight;
  part_->statistics.compressed_clusters += table_->active_weight;
  part_->statistics.fragmented_clusters += table_->active_weight;
  if (state_.IsOutside(range.offset_bytes, range.length_bytes)) {
    Add(FindingCode::kCompressedPastEnd, table_->weight,
        absl::StrFormat("the file ends at 0x%x", file_bytes_));
    for (uint64_t cluster = range.offset_bytes >> cluster_bits_;
         cluster <= (range.end_bytes() - 1) >> cluster_bits_ && cluster < state_.tracked_clusters;
         ++cluster) {
      if (cluster >= state_.file_clusters) counts_.past_end.Insert(cluster);
    }
    return;
  }
  if (range.end_bytes() >= file_bytes_ + kSectorBytes) {
    Add(FindingCode::kCutByEndOfFile, 1, "the last sectors of a compressed cluster are missing");
  }
  const uint64_t last = (range.end_bytes() - 1) >> cluster_bits_;
  for (uint64_t cluster = range.offset_bytes >> cluster_bits_; cluster <= last; ++cluster) {
    counts_.compressed.Add(cluster, table_->weight);
  }
}

void L2Walk::WalkStandard(uint64_t entry, uint64_t bitmap_word, L2EntryKind kind) {
  const uint64_t offset = EntryOffset(entry);
  part_->statistics.allocated_clusters += table_->active_weight;
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
      counts_.past_end.Insert(cluster);
      MarkCopied(entry, cluster);
    } else if (table_->active_weight != 0 && IsCopied(entry) && state_.refcounts_readable) {
      // Too far away for any refcount to be looked up: it is 0, and COPIED promises 1.
      Add(FindingCode::kCopiedWrong, table_->active_weight, "");
    }
    return;
  }
  if (aligned && offset + cluster_size_ > file_bytes_ && !part_->cut_by_end) {
    part_->cut_by_end = FindingHere(FindingCode::kCutByEndOfFile, 1, "a guest cluster");
  }
  CountGuestCluster(entry);
  // A misaligned entry reaches into the next cluster, too; qemu-img counts both.
  if (!aligned && !counts_.standard.Add(cluster + 1, table_->weight)) {
    counts_.collisions.Insert(cluster + 1);
  }
}

void AddTo(Statistics& sum, const Statistics& part) {
  sum.allocated_clusters += part.allocated_clusters;
  sum.fragmented_clusters += part.fragmented_clusters;
  sum.compressed_clusters += part.compressed_clusters;
}

}  // namespace

void CheckL2Tables(CheckState& state) {
  const std::vector<absl::Span<L2Table>> parts = DivideTables(state);
  const uint64_t threads = std::clamp<uint64_t>(parts.size(), 1, state.threads());
  std::vector<std::unique_ptr<L2Walk>> walks;
  for (uint64_t i = 0; i < threads; ++i) walks.push_back(std::make_unique<L2Walk>(state));
  TakeOver(state, walks[0]->counts());
  bool cut_by_end = false;
  RunInOrder<L2Part>(
      parts.size(), threads,
      [&](uint64_t worker, uint64_t part) { return walks[worker]->Walk(parts[part]); },
      [&](L2Part part) {
        state.Absorb(std::move(part.notes));
        AddTo(state.statistics, part.statistics);
        state.coverage.l2_tables += part.tables;
        // Only the last clusters of a file can be cut, and one of them says it for all.
        if (part.cut_by_end && !cut_by_end) state.findings.Add(*std::move(part.cut_by_end));
        cut_by_end = cut_by_end || part.cut_by_end.has_value();
      });
  for (const auto& walk : walks) AddStandard(state, walk->counts());
  for (const auto& walk : walks) AddCompressed(state, walk->counts());
}

}  // namespace qcow2check
