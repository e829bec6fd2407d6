// The owner pass: who uses the clusters in question.
//
// Needs the comparison. For clusters that got a second reference, for COPIED flags that do not
// fit, and for the refcount findings that will be listed, it finds all owners: metadata from the
// lists of the other passes, guest clusters by reading the L2 tables a second time. If nothing is
// in question, which is so for every sound image, it reads nothing.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "checker/table_reader.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

constexpr size_t kOwnersKeptPerCluster = 8;
constexpr size_t kOwnersKept = 100'000;
constexpr uint64_t kClustersAskedPerFinding = 64;

struct Record {
  std::vector<Owner> owners;         // the first few
  uint64_t metadata = 0;             // structures that lie here
  uint64_t guests = 0;               // entries that point here; shared tables count once
  std::optional<GuestOffset> guest;  // of the first entry
  bool several_guests = false;
  bool by_misaligned_entry = false;
  bool compressed = false;
  bool uncompressed = false;
  bool refcount_block = false;
};

class OwnerSearch {
 public:
  explicit OwnerSearch(CheckState& state) : state_(state), wanted_(state.tracked_clusters) {}

  void Run() {
    CollectQuestions();
    ReportSharedTables();
    if (wanted_.empty() && state_.copied_questions->empty()) return;
    FindMetadataOwners();
    JudgeL1Copied();
    FindGuestOwners();
    ReportCollisions();
    AttachOwners();
  }

 private:
  void Ask(uint64_t cluster) { wanted_.Insert(cluster); }
  void CollectQuestions();
  void FindMetadataOwners();
  void AddMetadata(const std::vector<uint64_t>& sorted, const MetadataRegion& region);
  void FindGuestOwners();
  void VisitEntry(const L2Table& table, uint64_t place, uint64_t l2_index, uint64_t entry);
  void AddGuest(uint64_t cluster, const L2Table& table, uint64_t place, uint64_t l2_index,
                uint64_t entry);
  void KeepOwner(Record& record, Owner owner);
  void JudgeL1Copied();
  void JudgeCopied(uint64_t cluster, uint64_t entry, uint64_t weight, Finding finding);
  void ReportSharedTables();
  void ReportCollisions();
  void AttachOwners();

  CheckState& state_;
  ClusterSet wanted_;
  absl::flat_hash_map<uint64_t, Record> records_;
  size_t owners_kept_ = 0;
};

bool WantsOwners(FindingCode code) {
  switch (code) {
    case FindingCode::kRefcountTooLow:
    case FindingCode::kRefcountZeroInUse:
    case FindingCode::kRefcountOverflow:
    case FindingCode::kRefcountTooHigh:
    case FindingCode::kRefcountBlockShared:
      return true;
    default:
      return false;
  }
}

void OwnerSearch::CollectQuestions() {
  state_.collisions->ForEach([this](uint64_t cluster) { Ask(cluster); });
  for (const Finding& finding : state_.findings.findings()) {
    if (!WantsOwners(finding.code)) continue;
    const uint64_t first = state_.geo().ClusterOf(*finding.host_offset).value;
    const uint64_t count = std::min(finding.clusters, kClustersAskedPerFinding);
    for (uint64_t i = 0; i < count; ++i) Ask(first + i);
  }
}

void OwnerSearch::KeepOwner(Record& record, Owner owner) {
  if (record.owners.size() >= kOwnersKeptPerCluster || owners_kept_ >= kOwnersKept) return;
  ++owners_kept_;
  record.owners.push_back(std::move(owner));
}

void OwnerSearch::AddMetadata(const std::vector<uint64_t>& sorted, const MetadataRegion& region) {
  const int bits = state_.geo().cluster_bits;
  const uint64_t first = region.offset_bytes >> bits;
  const uint64_t last = SaturatingAdd(region.offset_bytes, region.length_bytes - 1) >> bits;
  for (auto it = std::lower_bound(sorted.begin(), sorted.end(), first);
       it != sorted.end() && *it <= last; ++it) {
    Record& record = records_[*it];
    ++record.metadata;
    record.refcount_block |= region.structure == Structure::kRefcountBlock;
    KeepOwner(record, {.structure = region.structure,
                       .host_offset = HostOffset{region.offset_bytes},
                       .snapshot = region.snapshot});
  }
}

void OwnerSearch::FindMetadataOwners() {
  std::vector<uint64_t> sorted;
  wanted_.ForEach([&sorted](uint64_t cluster) { sorted.push_back(cluster); });
  const uint64_t size = state_.geo().cluster_size();
  for (const MetadataRegion& region : state_.regions) AddMetadata(sorted, region);
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

void OwnerSearch::FindGuestOwners() {
  TableReader reader(state_);
  const uint64_t step = state_.geo().l2_entry_bytes();
  reader.ReadAll(absl::MakeSpan(state_.l2_tables),
                 [&](L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) {
                   if (table.shape == L2Shape::kLost) return;
                   for (uint64_t at = 0; at < bytes.size(); at += step) {
                     const uint64_t entry = Load64(&bytes[at]);
                     if (entry == 0) continue;
                     VisitEntry(table, table.offset_bytes + begin + at, (begin + at) / step, entry);
                   }
                 });
}

void OwnerSearch::VisitEntry(const L2Table& table, uint64_t place, uint64_t l2_index,
                             uint64_t entry) {
  const Geometry& geometry = state_.geo();
  if (geometry.data_file) return;
  const L2EntryKind kind = KindOfL2Entry(entry, geometry);
  if (kind == L2EntryKind::kUnallocated || kind == L2EntryKind::kZeroPlain) return;
  if (kind == L2EntryKind::kCompressed) {
    const CompressedRange range = DecodeCompressed(entry, geometry.cluster_bits);
    if (state_.IsOutside(range.offset_bytes, range.length_bytes)) return;
    const uint64_t last = (range.end_bytes() - 1) >> geometry.cluster_bits;
    for (uint64_t c = range.offset_bytes >> geometry.cluster_bits; c <= last; ++c) {
      if (wanted_.Contains(c)) AddGuest(c, table, place, l2_index, entry);
    }
    return;
  }
  const uint64_t offset = EntryOffset(entry);
  const uint64_t cluster = offset >> geometry.cluster_bits;
  if (cluster >= state_.tracked_clusters) return;
  if (table.active_weight != 0 && state_.copied_questions->Contains(cluster)) {
    JudgeCopied(cluster, entry, table.active_weight,
                {.structure = Structure::kL2Table,
                 .host_offset = HostOffset{place},
                 .length_bytes = geometry.l2_entry_bytes(),
                 .clusters = 1,
                 .guest_offset = geometry.GuestOffsetOf(table.l1_index, l2_index),
                 .guest_length_bytes = geometry.cluster_size(),
                 .l1_index = table.l1_index,
                 .l2_index = l2_index,
                 .target = HostOffset{offset}});
  }
  if (wanted_.Contains(cluster)) AddGuest(cluster, table, place, l2_index, entry);
  if (!IsAligned(offset, geometry.cluster_size()) && wanted_.Contains(cluster + 1)) {
    AddGuest(cluster + 1, table, place, l2_index, entry);
  }
}

void OwnerSearch::AddGuest(uint64_t cluster, const L2Table& table, uint64_t place,
                           uint64_t l2_index, uint64_t entry) {
  const Geometry& geometry = state_.geo();
  Record& record = records_[cluster];
  const GuestOffset guest = geometry.GuestOffsetOf(table.l1_index, l2_index);
  ++record.guests;
  if (!record.guest) record.guest = guest;
  record.several_guests |= *record.guest != guest;
  const bool compressed = IsCompressed(entry);
  record.compressed |= compressed;
  record.uncompressed |= !compressed;
  record.by_misaligned_entry |=
      !compressed && !IsAligned(EntryOffset(entry), geometry.cluster_size());
  KeepOwner(record,
            {.structure = compressed ? Structure::kCompressedCluster : Structure::kDataCluster,
             .host_offset = geometry.OffsetOf({cluster}),
             .entry_offset = HostOffset{place},
             .guest_offset = guest,
             .l1_index = table.l1_index,
             .l2_index = l2_index,
             .snapshot = table.snapshot});
}

// A flag is right if it says what the stored refcount says: that is what a writer goes by. If it
// fits the true number of references, the refcount is what is wrong, and the finding says so.
void OwnerSearch::JudgeCopied(uint64_t cluster, uint64_t entry, uint64_t weight, Finding finding) {
  if (IsCopied(entry) == state_.stored_is_one->Contains(cluster)) return;
  const bool fits_truth =
      IsCopied(entry) == (cluster < state_.file_clusters && state_.expected->Get(cluster) == 1);
  const bool lazy = state_.header.Has(kDirty) && state_.header.Has(kLazyRefcounts);
  finding.code = lazy && fits_truth ? FindingCode::kRefcountLazy : FindingCode::kCopiedWrong;
  finding.count = weight;
  finding.stored = entry;
  if (fits_truth) {
    finding.detail = "the flag fits the references; the refcount is wrong";
  } else {
    finding.expected = entry ^ kCopiedBit;
  }
  state_.findings.Add(std::move(finding));
}

void OwnerSearch::JudgeL1Copied() {
  const Geometry& geometry = state_.geo();
  for (const ActiveL1Entry& slot : state_.active_l1) {
    const uint64_t offset = EntryOffset(slot.entry);
    const uint64_t cluster = offset >> geometry.cluster_bits;
    if (offset == 0 || cluster >= state_.tracked_clusters ||
        !state_.copied_questions->Contains(cluster)) {
      continue;
    }
    JudgeCopied(cluster, slot.entry, 1,
                {.structure = Structure::kL1Table,
                 .host_offset = HostOffset{state_.header.l1_table_offset + slot.l1_index * 8},
                 .length_bytes = 8,
                 .clusters = 1,
                 .guest_offset = geometry.GuestOffsetOf(slot.l1_index, 0),
                 .guest_length_bytes = geometry.l2_guest_bytes(),
                 .l1_index = slot.l1_index,
                 .target = HostOffset{offset}});
  }
}

// Damage that a wrong refcount counts already is not counted twice.
uint64_t CountUnlessMismatched(const CheckState& state, uint64_t cluster) {
  return state.mismatched->Contains(cluster) ? 0 : 1;
}

void OwnerSearch::ReportSharedTables() {
  const Geometry& geometry = state_.geo();
  for (const SharedL2Table& shared : state_.shared_l2) {
    const uint64_t cluster = shared.offset_bytes >> geometry.cluster_bits;
    const auto owner = [&](uint64_t l1_index) {
      return Owner{.structure = Structure::kL2Table,
                   .host_offset = HostOffset{shared.offset_bytes},
                   .guest_offset = geometry.GuestOffsetOf(l1_index, 0),
                   .l1_index = l1_index};
    };
    state_.findings.Add(
        {.code = FindingCode::kCrossLinkedL2,
         .structure = Structure::kL2Table,
         .host_offset = HostOffset{shared.offset_bytes},
         .length_bytes = geometry.cluster_size(),
         .clusters = 1,
         .count = CountUnlessMismatched(state_, cluster),
         .guest_offset = geometry.GuestOffsetOf(shared.second_l1_index, 0),
         .guest_length_bytes = geometry.l2_guest_bytes(),
         .l1_index = shared.second_l1_index,
         .owners = {owner(shared.first_l1_index), owner(shared.second_l1_index)},
         .detail = absl::StrFormat("slots %d and %d both lead to 0x%x", shared.first_l1_index,
                                   shared.second_l1_index, shared.offset_bytes)});
  }
}

std::optional<FindingCode> CodeForCollision(const Record& record) {
  if (record.metadata != 0 && record.guests != 0) return FindingCode::kDataOnMetadata;
  if (record.metadata > 1) return FindingCode::kMetadataOverlap;
  if (record.metadata != 0) return std::nullopt;
  if (record.compressed && !record.uncompressed) return std::nullopt;  // sharing by design
  if (record.several_guests) return FindingCode::kCrossLinkedData;
  if (record.compressed) return FindingCode::kCrossLinkedData;
  return std::nullopt;
}

void OwnerSearch::ReportCollisions() {
  const Geometry& geometry = state_.geo();
  state_.collisions->ForEach([&](uint64_t cluster) {
    const auto found = records_.find(cluster);
    // What a misaligned entry reaches into is the fault of that entry, which is a finding.
    if (found == records_.end() || found->second.by_misaligned_entry) return;
    const Record& record = found->second;
    const std::optional<FindingCode> code = CodeForCollision(record);
    if (!code) return;
    // A block that shares its cluster is a finding of its own that adds to the total.
    const bool counted_elsewhere = *code == FindingCode::kMetadataOverlap && record.refcount_block;
    state_.findings.Add({.code = *code,
                         .structure = record.owners.empty() ? Structure::kDataCluster
                                                            : record.owners.front().structure,
                         .host_offset = geometry.OffsetOf({cluster}),
                         .length_bytes = geometry.cluster_size(),
                         .clusters = 1,
                         .count = counted_elsewhere ? 0 : CountUnlessMismatched(state_, cluster),
                         .guest_offset = record.guest,
                         .guest_length_bytes = record.guest ? geometry.cluster_size() : 0,
                         .owners = record.owners});
  });
}

void OwnerSearch::AttachOwners() {
  const Geometry& geometry = state_.geo();
  for (Finding& finding : state_.findings.findings()) {
    if (!WantsOwners(finding.code) || !finding.owners.empty()) continue;
    const uint64_t first = geometry.ClusterOf(*finding.host_offset).value;
    const auto found = records_.find(first);
    if (found == records_.end()) continue;
    const Record& record = found->second;
    finding.owners = record.owners;
    if (!record.owners.empty()) finding.structure = record.owners.front().structure;
    if (!record.guest || record.several_guests) continue;
    // A guest range is given as far as guest and host clusters run side by side.
    uint64_t run = 1;
    for (; run < std::min(finding.clusters, kClustersAskedPerFinding); ++run) {
      const auto next = records_.find(first + run);
      if (next == records_.end() || !next->second.guest || next->second.several_guests ||
          next->second.guest->bytes != record.guest->bytes + run * geometry.cluster_size()) {
        break;
      }
    }
    finding.guest_offset = record.guest;
    finding.guest_length_bytes = run * geometry.cluster_size();
  }
}

}  // namespace

void ResolveOwners(CheckState& state) { OwnerSearch(state).Run(); }

}  // namespace qcow2check
