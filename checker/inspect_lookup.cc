// "Where is this guest byte?" and "who owns this host cluster?".
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/inspect.h"
#include "checker/owner_search.h"
#include "common/checked_math.h"
#include "common/refcount_block.h"

namespace qcow2check {
namespace {

constexpr uint64_t kOwnersShown = 1000;
constexpr uint64_t kSlotsShown = 64;
constexpr uint64_t kSnapshotsShown = 1000;
constexpr size_t kNotesShown = 20;

}  // namespace

absl::string_view NameOf(ReadsFrom source) {
  switch (source) {
    case ReadsFrom::kCluster:
      return "cluster";
    case ReadsFrom::kCompressed:
      return "compressed-cluster";
    case ReadsFrom::kDataFile:
      return "data-file";
    case ReadsFrom::kZeros:
      return "zeros";
    case ReadsFrom::kBackingFile:
      return "backing-file";
    case ReadsFrom::kNowhere:
      return "nowhere";
  }
  return "";
}

absl::string_view NameOf(L2EntryKind kind) {
  switch (kind) {
    case L2EntryKind::kUnallocated:
      return "unallocated";
    case L2EntryKind::kZeroPlain:
      return "zero";
    case L2EntryKind::kZeroAllocated:
      return "zero-allocated";
    case L2EntryKind::kNormal:
      return "normal";
    case L2EntryKind::kCompressed:
      return "compressed";
  }
  return "";
}

// --- Refcounts ---

void ImageInspector::FillStored(ClusterRefcounts& refcounts) {
  if (absl::Status status = NeedRefcountTable(); !status.ok()) {
    refcounts.stored_note = std::string(status.message());
    return;
  }
  const Geometry& geometry = state_.geo();
  const uint64_t table_index = refcounts.cluster.value / geometry.refcount_block_entries();
  const uint64_t table_bytes =
      SaturatingMultiply(state_.header.refcount_table_clusters, geometry.cluster_size());
  if (table_index >= table_bytes / 8) {
    refcounts.stored = 0;
    refcounts.stored_note = "the refcount table does not reach so far";
    return;
  }
  const uint64_t place = SaturatingAdd(state_.header.refcount_table_offset, table_index * 8);
  if (place >= file_.size_bytes()) {
    refcounts.stored_note =
        absl::StrFormat("refcount table entry %d is behind the end of the file", table_index);
    return;
  }
  const uint64_t block = ReadWord(place, Structure::kRefcountTable) & kRefcountTableOffsetMask;
  if (block == 0) {
    refcounts.stored = 0;
    refcounts.stored_note =
        absl::StrFormat("there is no refcount block for it (table entry %d is 0)", table_index);
    return;
  }
  if (!IsAligned(block, geometry.cluster_size()) || block >= file_.size_bytes()) {
    refcounts.stored_note = absl::StrFormat(
        "refcount table entry %d points to 0x%x, where no block can be", table_index, block);
    return;
  }
  refcounts.block = HostOffset{block};
  const int order = geometry.refcount_order;
  const uint64_t bit = (refcounts.cluster.value % geometry.refcount_block_entries()) << order;
  std::array<uint8_t, 8> bytes;
  state_.Read(HostOffset{block + bit / 8}, absl::MakeSpan(bytes), Structure::kRefcountBlock);
  refcounts.stored = LoadRefcount(bytes.data(), bit % 8 >> order, order);
}

ClusterRefcounts ImageInspector::RefcountsOf(ClusterIndex cluster) {
  ClusterRefcounts refcounts = {.cluster = cluster};
  FillStored(refcounts);
  const CheckState& walk = Walk();
  if (cluster.value < walk.file_clusters) refcounts.expected = walk.expected->Get(cluster.value);
  return refcounts;
}

// --- Where is this guest byte? ---

void ImageInspector::SetUnallocated(GuestLocation& location) const {
  const bool backing = state_.header.backing_file_offset != 0;
  location.reads_from = backing ? ReadsFrom::kBackingFile : ReadsFrom::kZeros;
  if (backing) location.file_name = state_.backing_name;
}

absl::StatusOr<GuestLocation> ImageInspector::Locate(GuestOffset guest) {
  if (absl::Status status = NeedL1(); !status.ok()) return status;
  const Geometry& geometry = state_.geo();
  GuestLocation location = {
      .guest = guest,
      .past_end = guest.bytes >= geometry.virtual_size_bytes,
      .virtual_size_bytes = geometry.virtual_size_bytes,
      .l1_index = guest.bytes / geometry.l2_guest_bytes(),
      .l2_index = (guest.bytes >> geometry.cluster_bits) % geometry.l2_entries(),
      .encrypted = state_.header.crypt_method != kCryptNone};
  if (location.l1_index >= state_.header.l1_size) {
    if (!location.past_end) {
      location.notes.push_back(
          absl::StrFormat("the L1 table has only %d entries", state_.header.l1_size));
    }
    return location;
  }
  absl::StatusOr<uint64_t> l1_entry = ReadL1Entry(location.l1_index);
  if (!l1_entry.ok()) {
    location.notes.push_back(std::string(l1_entry.status().message()));
    return location;
  }
  location.l1_entry_offset = HostOffset{state_.header.l1_table_offset + location.l1_index * 8};
  location.l1_entry = *l1_entry;
  DescribeMapping(location);
  // What is mapped behind the end is shown, but no guest can read it.
  if (location.past_end) location.reads_from = ReadsFrom::kNowhere;
  return location;
}

void ImageInspector::DescribeMapping(GuestLocation& location) {
  const Geometry& geometry = state_.geo();
  const uint64_t table = EntryOffset(location.l1_entry);
  if (table == 0) {
    SetUnallocated(location);
    return;
  }
  location.l2_table = HostOffset{table};
  if (!IsAligned(table, geometry.cluster_size())) {
    location.notes.push_back("the L1 entry does not point to the start of a cluster");
    return;
  }
  if (table >= file_.size_bytes()) {
    location.notes.push_back(
        absl::StrFormat("the L2 table is behind the end of the file (0x%x)", file_.size_bytes()));
    return;
  }
  for (const L2Table& walked : Walk().l2_tables) {
    if (walked.offset_bytes == table && walked.shape == L2Shape::kLost) {
      location.notes.push_back("that cluster holds something else than an L2 table");
    }
  }
  const uint64_t place = table + location.l2_index * geometry.l2_entry_bytes();
  const uint64_t entry = ReadWord(place, Structure::kL2Table);
  location.l2_entry = {.l2_index = location.l2_index,
                       .entry_offset = HostOffset{place},
                       .guest = geometry.GuestOffsetOf(location.l1_index, location.l2_index),
                       .entry = entry,
                       .kind = KindOfL2Entry(entry, geometry)};
  if (geometry.extended_l2) {
    location.l2_entry->bitmap_word = ReadWord(place + 8, Structure::kL2Table);
  }
  DescribeEntry(location);
}

void ImageInspector::DescribeEntry(GuestLocation& location) {
  switch (location.l2_entry->kind) {
    case L2EntryKind::kUnallocated:
      if (state_.geo().extended_l2) {
        DescribeSubcluster(location, false);
      } else {
        SetUnallocated(location);
      }
      return;
    case L2EntryKind::kZeroPlain:
      location.reads_from = ReadsFrom::kZeros;
      return;
    case L2EntryKind::kZeroAllocated:
    case L2EntryKind::kNormal:
      DescribeStandard(location);
      return;
    case L2EntryKind::kCompressed:
      DescribeCompressed(location);
      return;
  }
}

void ImageInspector::DescribeStandard(GuestLocation& location) {
  const Geometry& geometry = state_.geo();
  const uint64_t offset = EntryOffset(location.l2_entry->entry);
  location.host_offset = HostOffset{offset + location.guest.bytes % geometry.cluster_size()};
  if (!IsAligned(offset, geometry.cluster_size())) {
    location.notes.push_back("the L2 entry does not point to the start of a cluster");
  }
  if (geometry.data_file) {
    location.reads_from = ReadsFrom::kDataFile;
    location.file_name = state_.data_file_name;
  } else {
    location.reads_from = ReadsFrom::kCluster;
    location.refcounts.push_back(RefcountsOf(geometry.ClusterOf(HostOffset{offset})));
    if (location.host_offset->bytes >= file_.size_bytes()) {
      location.notes.push_back(
          absl::StrFormat("this is behind the end of the file (0x%x)", file_.size_bytes()));
    }
  }
  if (location.l2_entry->kind == L2EntryKind::kZeroAllocated) {
    location.reads_from = ReadsFrom::kZeros;
  } else if (geometry.extended_l2) {
    DescribeSubcluster(location, true);
  }
}

void ImageInspector::DescribeSubcluster(GuestLocation& location, bool has_cluster) {
  const uint64_t subcluster_bytes = state_.geo().cluster_size() / kSubclustersPerCluster;
  const uint64_t number = location.guest.bytes % state_.geo().cluster_size() / subcluster_bytes;
  location.subcluster = number;
  const SubclusterBitmap bitmap = DecodeSubclusterBitmap(location.l2_entry->bitmap_word);
  const bool allocated = ((bitmap.allocated >> number) & 1) != 0;
  const bool zeros = ((bitmap.reads_as_zeros >> number) & 1) != 0;
  if (allocated && zeros) {
    location.reads_from = ReadsFrom::kNowhere;
    location.notes.push_back("the subcluster is both allocated and reads as zeros: an error");
  } else if (allocated && !has_cluster) {
    location.reads_from = ReadsFrom::kNowhere;
    location.notes.push_back("the subcluster is allocated, but the entry has no cluster: an error");
  } else if (zeros) {
    location.reads_from = ReadsFrom::kZeros;
  } else if (!allocated) {
    SetUnallocated(location);
  }
}

void ImageInspector::DescribeCompressed(GuestLocation& location) {
  const Geometry& geometry = state_.geo();
  if (geometry.data_file) {
    location.notes.push_back("compressed clusters cannot be in an external data file");
    return;
  }
  location.reads_from = ReadsFrom::kCompressed;
  location.compressed = DecodeCompressed(location.l2_entry->entry, geometry.cluster_bits);
  const CompressedRange range = *location.compressed;
  if (range.end_bytes() > file_.size_bytes()) {
    location.notes.push_back(
        absl::StrFormat("the compressed bytes reach behind the end of the "
                        "file (0x%x)",
                        file_.size_bytes()));
  }
  const uint64_t last = (range.end_bytes() - 1) >> geometry.cluster_bits;
  for (uint64_t c = range.offset_bytes >> geometry.cluster_bits; c <= last; ++c) {
    location.refcounts.push_back(RefcountsOf({c}));
  }
}

// --- Who owns this host cluster? ---

const CappedList<uint64_t>& ImageInspector::SlotsOf(uint64_t l2_offset) {
  const auto [found, is_new] = slots_.try_emplace(l2_offset);
  if (!is_new) return found->second;
  std::vector<uint64_t> slots;
  for (const L2Table& table : Walk().l2_tables) {
    if (table.offset_bytes == l2_offset) slots.push_back(table.l1_index);
  }
  for (const SharedL2Table& shared : Walk().shared_l2) {
    if (shared.offset_bytes == l2_offset) slots.push_back(shared.second_l1_index);
  }
  std::sort(slots.begin(), slots.end());
  slots.erase(std::unique(slots.begin(), slots.end()), slots.end());
  for (const uint64_t slot : slots) found->second.Add(kSlotsShown, slot);
  return found->second;
}

const ImageInspector::SlotUsers& ImageInspector::UsersOf(L2Slot slot) {
  const auto [found, is_new] = users_.try_emplace(slot);
  SlotUsers& users = found->second;
  if (!is_new) return users;
  const auto [l2_offset, l1_index] = slot;
  CheckState& walk = Walk();
  for (const L1Table& table : walk.l1_tables) {
    const uint64_t place = table.offset_bytes + l1_index * 8;
    if (table.users.back().entries <= l1_index || place >= file_.size_bytes()) continue;
    if (!walk.Spend(1, Structure::kL1Table)) break;
    const uint64_t target = EntryOffset(ReadWord(place, Structure::kL1Table));
    if ((target & ~(walk.geo().cluster_size() - 1)) != l2_offset) continue;
    for (const L1User& user : table.users) {
      if (user.entries <= l1_index) continue;
      if (user.snapshot) {
        users.snapshots.Add(kSnapshotsShown, *user.snapshot);
      } else {
        users.active = true;
      }
      if (!users.entry_offset || !user.snapshot) users.entry_offset = HostOffset{place};
    }
  }
  std::sort(users.snapshots.items.begin(), users.snapshots.items.end());
  return users;
}

// An L2 table, or what one of its entries points to: one owner for each L1 slot that leads there.
void ImageInspector::AddMapped(const Owner& owner, uint64_t l2_offset, ClusterOwners& result) {
  const CheckState& walk = Walk();
  const CappedList<uint64_t>& slots = SlotsOf(l2_offset);
  for (const uint64_t l1_index : slots.items) {
    const SlotUsers& users = UsersOf({l2_offset, l1_index});
    ClusterOwner mapped = {.owner = owner, .active = users.active, .snapshots = users.snapshots};
    mapped.owner.l1_index = l1_index;
    mapped.owner.guest_offset = walk.geo().GuestOffsetOf(l1_index, owner.l2_index.value_or(0));
    if (owner.structure == Structure::kL2Table) mapped.owner.entry_offset = users.entry_offset;
    result.owners.Add(kOwnersShown, std::move(mapped));
  }
  result.owners.left_out += slots.left_out;
}

void ImageInspector::AddOwner(const Owner& owner, ClusterOwners& result) {
  const CheckState& walk = Walk();
  switch (owner.structure) {
    case Structure::kL2Table:
      AddMapped(owner, owner.host_offset.bytes, result);
      return;
    case Structure::kDataCluster:
    case Structure::kCompressedCluster:
      AddMapped(owner, owner.entry_offset->bytes & ~(walk.geo().cluster_size() - 1), result);
      return;
    default:
      break;
  }
  ClusterOwner plain = {.owner = owner};
  if (owner.structure == Structure::kL1Table || owner.structure == Structure::kSnapshotL1Table) {
    for (const L1Table& table : walk.l1_tables) {
      if (table.offset_bytes != owner.host_offset.bytes) continue;
      for (const L1User& user : table.users) {
        plain.active |= !user.snapshot;
        if (user.snapshot) plain.snapshots.Add(kSnapshotsShown, *user.snapshot);
      }
    }
  }
  result.owners.Add(kOwnersShown, std::move(plain));
}

absl::StatusOr<ClusterOwners> ImageInspector::FindOwners(ClusterIndex cluster) {
  if (absl::Status status = NeedGeometry(); !status.ok()) return status;
  const Geometry& geometry = state_.geo();
  if (cluster.value > kSaturated >> geometry.cluster_bits) {
    return absl::OutOfRangeError(absl::StrFormat("no file can have a cluster %d of %d bytes",
                                                 cluster.value, geometry.cluster_size()));
  }
  CheckState& walk = Walk();
  ClusterOwners result = {.refcounts = RefcountsOf(cluster),
                          .offset = geometry.OffsetOf(cluster),
                          .cluster_bytes = geometry.cluster_size(),
                          .in_file = cluster.value < walk.file_clusters};
  if (cluster.value < walk.tracked_clusters) {
    OwnerSearch search(walk, {.per_cluster = kOwnersShown, .in_all = kOwnersShown});
    search.Ask(cluster.value);
    search.FindMetadataOwners();
    search.FindGuestOwners([](const L2EntryPlace&) {});
    if (const ClusterUsers* users = search.Find(cluster.value); users != nullptr) {
      for (const Owner& owner : users->owners) AddOwner(owner, result);
      result.owners.left_out += users->metadata + users->guests - users->owners.size();
    }
  }
  if (!result.in_file) {
    result.notes.push_back(
        "what points behind the end of the file uses nothing: a check reports it");
  }
  if (geometry.data_file) {
    result.notes.push_back("guest data is in the external data file, not in these clusters");
  }
  const std::vector<SkippedPart>& skipped = walk.coverage.skipped;
  for (size_t i = 0; i < std::min(skipped.size(), kNotesShown); ++i) {
    result.notes.push_back(
        absl::StrCat("not examined: ", skipped[i].what, " (", skipped[i].why, ")"));
  }
  if (skipped.size() > kNotesShown) {
    result.notes.push_back(
        absl::StrCat("not examined: ", skipped.size() - kNotesShown, " other parts"));
  }
  return result;
}

absl::StatusOr<ClusterOwners> FindOwners(const ImageFile& file, ClusterIndex cluster) {
  ImageInspector inspector(file, InspectCaps{});
  if (!inspector.is_qcow2()) return absl::InvalidArgumentError("it is not a qcow2 image");
  return inspector.FindOwners(cluster);
}

}  // namespace qcow2check
