#include "tests/image_mapping.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/byte_order.h"
#include "common/check.h"
#include "common/checked_math.h"
#include "tests/image_metadata.h"

namespace qcow2check::testing {
namespace {

constexpr uint32_t kAllSubclusters = 0xffffffff;
constexpr uint64_t kReadsAsZeros = uint64_t{kAllSubclusters} << 32;

Geometry GeometryFor(const ImageOptions& options) {
  Geometry geometry;
  geometry.version = options.version;
  geometry.cluster_bits = options.cluster_bits;
  geometry.refcount_order = options.refcount_order;
  geometry.extended_l2 = options.extended_l2;
  geometry.data_file = options.data_file.has_value();
  geometry.virtual_size_bytes = options.virtual_size;
  return geometry;
}

// The subclusters that the bytes [begin, end) of a cluster touch.
uint32_t SubclustersOf(uint64_t begin, uint64_t end, uint64_t cluster_size) {
  const uint64_t size = cluster_size / kSubclustersPerCluster;
  uint32_t mask = 0;
  for (uint64_t i = begin / size; i * size < end; ++i) mask |= uint32_t{1} << i;
  return mask;
}

uint64_t EncodeSubclusters(SubclusterBitmap bitmap) {
  return uint64_t{bitmap.reads_as_zeros} << 32 | bitmap.allocated;
}

bool HasHostCluster(L2EntryKind kind) {
  return kind == L2EntryKind::kNormal || kind == L2EntryKind::kZeroAllocated;
}

}  // namespace

ImageMapping::ImageMapping(const ImageOptions& options)
    : options_(options),
      geometry_(GeometryFor(options)),
      host_(options.cluster_bits, options.refcount_order),
      bytes_(3 * geometry_.cluster_size()) {
  GrowL1(geometry_.l1_entries_needed() + options.extra_l1_entries);
  if (IsRawDataFile()) data_file_bytes_.resize(options.virtual_size);
}

uint64_t ImageMapping::Word(uint64_t offset) const {
  QCOW2CHECK_CHECK(offset + 8 <= bytes_.size());
  return Load64(&bytes_[offset]);
}

void ImageMapping::SetWord(uint64_t offset, uint64_t value) {
  QCOW2CHECK_CHECK(offset + 8 <= bytes_.size());
  Store64(&bytes_[offset], value);
}

void ImageMapping::StoreBytes(uint64_t offset, absl::Span<const uint8_t> content) {
  if (bytes_.size() < offset + content.size()) bytes_.resize(offset + content.size());
  std::copy(content.begin(), content.end(), bytes_.begin() + static_cast<int64_t>(offset));
}

void ImageMapping::StoreData(uint64_t host_offset, absl::Span<const uint8_t> content) {
  if (!geometry_.data_file) return StoreBytes(host_offset, content);
  std::vector<uint8_t>& file = data_file_bytes_;
  if (file.size() < host_offset + content.size()) file.resize(host_offset + content.size());
  std::copy(content.begin(), content.end(), file.begin() + static_cast<int64_t>(host_offset));
}

uint64_t ImageMapping::AppendRegion(absl::Span<const uint8_t> content) {
  const uint64_t clusters = DivideRoundingUp(content.size(), cluster_size());
  const uint64_t offset = host_.Allocate(clusters);
  // The clusters may have been something else before.
  const uint64_t end = std::min<uint64_t>(offset + clusters * cluster_size(), bytes_.size());
  if (offset < end) std::fill_n(&bytes_[offset], end - offset, uint8_t{0});
  StoreBytes(offset, content);
  return offset;
}

// --- Steps ---

void ImageMapping::Apply(const Step& step) {
  ++generation_;
  std::visit([this](const auto& one) { Do(one); }, step);
}

void ImageMapping::Do(const Write& step) {
  const uint64_t end = step.guest_offset + step.length;
  QCOW2CHECK_CHECK(end <= RoundUp(geometry_.virtual_size_bytes, cluster_size()));
  for (uint64_t at = step.guest_offset; at < end;) {
    const uint64_t cluster = at / cluster_size();
    const uint64_t base = cluster * cluster_size();
    const uint64_t begin_in = at - base;
    const uint64_t end_in = std::min(end - base, cluster_size());
    std::vector<uint8_t> source = PatternOf(base, generation_, cluster_size());
    if (step.fill.has_value()) std::fill(source.begin(), source.end(), *step.fill);
    std::vector<uint8_t> content = GuestContent(cluster);
    std::copy(source.begin() + static_cast<int64_t>(begin_in),
              source.begin() + static_cast<int64_t>(end_in),
              content.begin() + static_cast<int64_t>(begin_in));
    MapData(cluster, content, begin_in, end_in);
    SetGuestContent(cluster, std::move(content));
    at = base + end_in;
  }
}

void ImageMapping::Do(const WriteClusters& step) {
  for (uint64_t i = 0; i < step.count; ++i) {
    Do(Write{(step.first + i * step.stride) * cluster_size(), cluster_size()});
  }
}

void ImageMapping::Do(const WriteCompressed& step) {
  QCOW2CHECK_CHECK(!geometry_.data_file);
  for (uint64_t cluster = step.first; cluster < step.first + step.count; ++cluster) {
    const uint64_t guest_offset = cluster * cluster_size();
    QCOW2CHECK_CHECK(guest_offset < geometry_.virtual_size_bytes);
    std::vector<uint8_t> content = PatternOf(guest_offset, generation_, cluster_size());
    const std::vector<uint8_t> random =
        RandomBytes(guest_offset + generation_, std::min(step.random_bytes, cluster_size()));
    std::copy(random.begin(), random.end(), content.begin());
    MapCompressed(cluster, content);
    SetGuestContent(cluster, std::move(content));
  }
}

void ImageMapping::Do(const WriteZeros& step) {
  QCOW2CHECK_CHECK(geometry_.version >= 3);
  for (uint64_t cluster = step.first; cluster < step.first + step.count; ++cluster) {
    QCOW2CHECK_CHECK(cluster * cluster_size() < geometry_.virtual_size_bytes);
    if (geometry_.extended_l2) {
      MapZeroSubclusters(cluster, step.preallocated, step.subclusters);
    } else {
      QCOW2CHECK_CHECK(step.subclusters == kAllSubclusters);
      MapZeros(cluster, step.preallocated);
    }
    ZeroGuestCluster(cluster, step.subclusters);
  }
}

void ImageMapping::Do(const Discard& step) {
  for (uint64_t cluster = step.first; cluster < step.first + step.count; ++cluster) {
    QCOW2CHECK_CHECK(cluster * cluster_size() < geometry_.virtual_size_bytes);
    if (!HasL2(cluster)) continue;
    Unmap(cluster);
    ZeroGuestCluster(cluster, kAllSubclusters);
  }
}

void ImageMapping::Do(const Resize& step) {
  QCOW2CHECK_CHECK(step.virtual_size >= geometry_.virtual_size_bytes);
  geometry_.virtual_size_bytes = step.virtual_size;
  GrowL1(geometry_.l1_entries_needed());
  if (IsRawDataFile()) data_file_bytes_.resize(step.virtual_size);
}

// --- The guest's view ---

std::vector<uint8_t> ImageMapping::GuestContent(uint64_t guest_cluster) const {
  const auto found = guest_.find(guest_cluster);
  return found == guest_.end() ? std::vector<uint8_t>(cluster_size()) : *found->second;
}

void ImageMapping::SetGuestContent(uint64_t guest_cluster, std::vector<uint8_t> content) {
  guest_[guest_cluster] = std::make_shared<const std::vector<uint8_t>>(std::move(content));
}

void ImageMapping::ZeroGuestCluster(uint64_t guest_cluster, uint32_t subclusters) {
  std::vector<uint8_t> content = GuestContent(guest_cluster);
  const uint64_t size = cluster_size() / kSubclustersPerCluster;
  for (uint64_t i = 0; i < kSubclustersPerCluster; ++i) {
    if (((subclusters >> i) & 1) != 0) std::fill_n(&content[i * size], size, uint8_t{0});
  }
  if (IsRawDataFile()) StoreData(guest_cluster * cluster_size(), content);
  SetGuestContent(guest_cluster, std::move(content));
}

// --- Tables ---

void ImageMapping::GrowL1(uint64_t entries) {
  if (entries <= l1_entries_) return;
  std::vector<uint8_t> table(entries * 8);
  std::copy_n(bytes_.begin() + static_cast<int64_t>(l1_offset_), l1_entries_ * 8, table.begin());
  const uint64_t new_offset = AppendRegion(table);
  if (l1_entries_ != 0) host_.AddReferences(l1_offset_, l1_entries_ * 8, -1);
  l1_offset_ = new_offset;
  l1_entries_ = entries;
}

bool ImageMapping::HasL2(uint64_t guest_cluster) const {
  const uint64_t l1_index = guest_cluster / geometry_.l2_entries();
  return l1_index < l1_entries_ && Word(l1_offset_ + 8 * l1_index) != 0;
}

uint64_t ImageMapping::WritableEntry(uint64_t guest_cluster) {
  const uint64_t l1_index = guest_cluster / geometry_.l2_entries();
  QCOW2CHECK_CHECK(l1_index < l1_entries_);
  const uint64_t l1_word = Word(l1_offset_ + 8 * l1_index);
  uint64_t l2_offset = EntryOffset(l1_word);
  if (!IsCopied(l1_word)) {
    std::vector<uint8_t> table(cluster_size());
    if (l2_offset != 0) std::copy_n(&bytes_[l2_offset], table.size(), table.begin());
    const uint64_t new_offset = AppendRegion(table);
    if (l2_offset != 0) host_.AddReferences(l2_offset, cluster_size(), -1);
    l2_offset = new_offset;
    SetWord(l1_offset_ + 8 * l1_index, l2_offset | kCopiedBit);
  }
  const uint64_t l2_index = guest_cluster % geometry_.l2_entries();
  return l2_offset + l2_index * geometry_.l2_entry_bytes();
}

void ImageMapping::MapData(uint64_t guest_cluster, absl::Span<const uint8_t> content,
                           uint64_t begin, uint64_t end) {
  const uint64_t at = WritableEntry(guest_cluster);
  const uint64_t old = Word(at);
  const bool in_place = HasHostCluster(KindOfL2Entry(old, geometry_)) && IsCopied(old);
  uint64_t host = EntryOffset(old);
  if (!in_place) {
    host = geometry_.data_file ? guest_cluster * cluster_size() : host_.Allocate();
  }
  StoreData(host, content);
  SetWord(at, host | kCopiedBit);
  if (geometry_.extended_l2) {
    const uint32_t written = SubclustersOf(begin, end, cluster_size());
    SubclusterBitmap bitmap = DecodeSubclusterBitmap(Word(at + 8));
    if (IsCompressed(old)) bitmap.allocated = kAllSubclusters;
    bitmap.allocated |= written;
    bitmap.reads_as_zeros &= ~written;
    SetWord(at + 8, EncodeSubclusters(bitmap));
  }
  if (!in_place) AddEntryReferences(old, -1);
}

void ImageMapping::MapCompressed(uint64_t guest_cluster, absl::Span<const uint8_t> content) {
  const std::vector<uint8_t> stream = Compress(options_.compression_type, content);
  QCOW2CHECK_CHECK(stream.size() < cluster_size());
  const uint64_t at = WritableEntry(guest_cluster);
  const uint64_t old = Word(at);
  const uint64_t offset = host_.AllocateBytes(stream.size());
  StoreBytes(offset, stream);
  SetWord(at, EncodeCompressed({offset, stream.size()}, geometry_.cluster_bits));
  if (geometry_.extended_l2) SetWord(at + 8, 0);
  AddEntryReferences(old, -1);
}

uint64_t ImageMapping::AllocateZeroedData(uint64_t guest_cluster) {
  if (geometry_.data_file) return guest_cluster * cluster_size();
  return AppendRegion(std::vector<uint8_t>(cluster_size()));
}

void ImageMapping::MapZeros(uint64_t guest_cluster, bool preallocated) {
  const uint64_t at = WritableEntry(guest_cluster);
  const uint64_t old = Word(at);
  if (preallocated && HasHostCluster(KindOfL2Entry(old, geometry_))) {
    // The guest's bytes stay in the cluster, unreachable.
    SetWord(at, old | kZeroBit);
    return;
  }
  SetWord(at, preallocated ? AllocateZeroedData(guest_cluster) | kCopiedBit | kZeroBit : kZeroBit);
  AddEntryReferences(old, -1);
}

void ImageMapping::MapZeroSubclusters(uint64_t guest_cluster, bool preallocated,
                                      uint32_t subclusters) {
  const uint64_t at = WritableEntry(guest_cluster);
  const uint64_t old = Word(at);
  const bool has_cluster = HasHostCluster(KindOfL2Entry(old, geometry_));
  QCOW2CHECK_CHECK(!IsCompressed(old) || subclusters == kAllSubclusters);
  SubclusterBitmap bitmap = DecodeSubclusterBitmap(Word(at + 8));
  bitmap.allocated &= ~subclusters;
  bitmap.reads_as_zeros |= subclusters;
  uint64_t entry = has_cluster ? old : 0;
  if (!preallocated && bitmap.allocated == 0) entry = 0;
  if (preallocated && !has_cluster) entry = AllocateZeroedData(guest_cluster) | kCopiedBit;
  SetWord(at, entry);
  SetWord(at + 8, EncodeSubclusters(bitmap));
  if (entry != old) AddEntryReferences(old, -1);
}

void ImageMapping::Unmap(uint64_t guest_cluster) {
  const uint64_t at = WritableEntry(guest_cluster);
  const uint64_t old = Word(at);
  const L2EntryKind kind = KindOfL2Entry(old, geometry_);
  if (kind == L2EntryKind::kUnallocated || kind == L2EntryKind::kZeroPlain) {
    if (!options_.backing.has_value()) return;
  }
  SetWord(at, geometry_.version >= 3 && !geometry_.extended_l2 ? kZeroBit : 0);
  if (geometry_.extended_l2) SetWord(at + 8, kReadsAsZeros);
  AddEntryReferences(old, -1);
}

void ImageMapping::AddEntryReferences(uint64_t entry, int delta) {
  if (geometry_.data_file) return;
  switch (KindOfL2Entry(entry, geometry_)) {
    case L2EntryKind::kUnallocated:
    case L2EntryKind::kZeroPlain:
      return;
    case L2EntryKind::kZeroAllocated:
    case L2EntryKind::kNormal:
      host_.AddReferences(EntryOffset(entry), cluster_size(), delta);
      return;
    case L2EntryKind::kCompressed: {
      const CompressedRange range = DecodeCompressed(entry, geometry_.cluster_bits);
      host_.AddReferences(range.offset_bytes, range.length_bytes, delta);
      return;
    }
  }
}

// --- Snapshots ---

void ImageMapping::AddL1References(uint64_t l1_offset, uint64_t l1_entries, int delta) {
  for (uint64_t l1_index = 0; l1_index < l1_entries; ++l1_index) {
    const uint64_t l2_offset = EntryOffset(Word(l1_offset + 8 * l1_index));
    if (l2_offset == 0) continue;
    for (uint64_t i = 0; i < geometry_.l2_entries(); ++i) {
      AddEntryReferences(Word(l2_offset + i * geometry_.l2_entry_bytes()), delta);
    }
    host_.AddReferences(l2_offset, cluster_size(), delta);
  }
}

void ImageMapping::RefreshCopied() {
  const auto refreshed = [this](uint64_t word) {
    return host_.Refcount(EntryOffset(word)) == 1 ? word | kCopiedBit : word & ~kCopiedBit;
  };
  for (uint64_t l1_index = 0; l1_index < l1_entries_; ++l1_index) {
    const uint64_t l1_at = l1_offset_ + 8 * l1_index;
    const uint64_t l2_offset = EntryOffset(Word(l1_at));
    if (l2_offset == 0) continue;
    for (uint64_t i = 0; i < geometry_.l2_entries(); ++i) {
      const uint64_t at = l2_offset + i * geometry_.l2_entry_bytes();
      if (HasHostCluster(KindOfL2Entry(Word(at), geometry_))) SetWord(at, refreshed(Word(at)));
    }
    SetWord(l1_at, refreshed(Word(l1_at)));
  }
}

void ImageMapping::Do(const TakeSnapshot& step) {
  QCOW2CHECK_CHECK(!geometry_.data_file && l1_entries_ > 0);
  const uint64_t state_first = geometry_.l1_entries_needed() * geometry_.l2_entries();
  const uint64_t state_clusters = DivideRoundingUp(step.vm_state_bytes, cluster_size());
  if (state_clusters != 0) {
    GrowL1(DivideRoundingUp(state_first + state_clusters, geometry_.l2_entries()));
  }
  for (uint64_t i = state_first; i < state_first + state_clusters; ++i) {
    MapData(i, PatternOf(i * cluster_size(), generation_, cluster_size()), 0, cluster_size());
  }

  // As QEMU does, the copy keeps the COPIED flags, which mean nothing in a snapshot.
  std::vector<uint8_t> table(l1_entries_ * 8);
  std::copy_n(&bytes_[l1_offset_], table.size(), table.begin());
  Snapshot snapshot;
  snapshot.entry.l1_table_offset = AppendRegion(table);
  snapshot.entry.l1_size = static_cast<uint32_t>(l1_entries_);
  snapshot.entry.id = step.id.empty() ? absl::StrCat(next_snapshot_id_) : step.id;
  snapshot.entry.name = step.name.empty() ? absl::StrCat("snapshot", snapshot.entry.id) : step.name;
  snapshot.entry.date_seconds = static_cast<uint32_t>(1700000000 + generation_);
  snapshot.entry.vm_clock_nanoseconds = generation_ * 1000000000;
  snapshot.entry.vm_state_size_32 = static_cast<uint32_t>(step.vm_state_bytes);
  snapshot.entry.vm_state_size_64 = step.vm_state_bytes;
  snapshot.entry.disk_size = geometry_.virtual_size_bytes;
  snapshot.entry.extra_data_bytes = options_.snapshot_extra_bytes;
  snapshot.virtual_size = geometry_.virtual_size_bytes;
  snapshot.guest = guest_;
  ++next_snapshot_id_;
  AddL1References(l1_offset_, l1_entries_, 1);
  RefreshCopied();
  snapshots_.push_back(std::move(snapshot));
  StoreSnapshotTable();
  for (uint64_t i = state_first; i < state_first + state_clusters; ++i) Unmap(i);
}

void ImageMapping::Do(const DeleteSnapshot& step) {
  const auto found = std::find_if(snapshots_.begin(), snapshots_.end(),
                                  [&](const Snapshot& one) { return one.entry.id == step.id; });
  QCOW2CHECK_CHECK(found != snapshots_.end());
  const SnapshotEntry entry = found->entry;
  snapshots_.erase(found);
  StoreSnapshotTable();
  AddL1References(entry.l1_table_offset, entry.l1_size, -1);
  host_.AddReferences(entry.l1_table_offset, uint64_t{entry.l1_size} * 8, -1);
  RefreshCopied();
}

void ImageMapping::StoreSnapshotTable() {
  const Region old = snapshot_table_;
  snapshot_table_ = {};
  std::vector<uint8_t> table;
  for (Snapshot& snapshot : snapshots_) {
    const std::vector<uint8_t> entry = EncodeSnapshotEntry(snapshot.entry);
    snapshot.entry.offset_bytes = table.size();
    snapshot.entry.length_bytes = entry.size();
    table.insert(table.end(), entry.begin(), entry.end());
  }
  if (!table.empty()) {
    snapshot_table_ = {AppendRegion(table), table.size()};
    for (Snapshot& snapshot : snapshots_) snapshot.entry.offset_bytes += snapshot_table_.offset;
  }
  if (old.length != 0) host_.AddReferences(old.offset, old.length, -1);
}

// --- The result ---

BuiltL1Table ImageMapping::Survey(uint64_t l1_offset, uint64_t l1_entries) const {
  BuiltL1Table l1 = {l1_offset, l1_entries, {}, {}};
  for (uint64_t l1_index = 0; l1_index < l1_entries; ++l1_index) {
    const uint64_t l2_offset = EntryOffset(Word(l1.EntryOffset(l1_index)));
    if (l2_offset == 0) continue;
    l1.l2_tables.push_back({l1_index, l2_offset, l1.EntryOffset(l1_index)});
    SurveyL2(l1.l2_tables.back(), l1.clusters);
  }
  return l1;
}

void ImageMapping::SurveyL2(const BuiltL2Table& l2_table,
                            std::vector<BuiltCluster>& clusters) const {
  for (uint64_t i = 0; i < geometry_.l2_entries(); ++i) {
    const uint64_t at = l2_table.host_offset + i * geometry_.l2_entry_bytes();
    const uint64_t entry = Word(at);
    BuiltCluster cluster;
    cluster.kind = KindOfL2Entry(entry, geometry_);
    cluster.guest_offset = geometry_.GuestOffsetOf(l2_table.l1_index, i).bytes;
    cluster.entry_offset = at;
    if (cluster.kind == L2EntryKind::kCompressed) {
      const CompressedRange range = DecodeCompressed(entry, geometry_.cluster_bits);
      cluster.host_offset = range.offset_bytes;
      cluster.length = range.length_bytes;
    } else if (HasHostCluster(cluster.kind)) {
      cluster.host_offset = EntryOffset(entry);
      cluster.length = cluster_size();
    } else {
      continue;
    }
    clusters.push_back(cluster);
  }
}

void ImageMapping::MoveTo(BuiltImage& image) {
  image.geometry = geometry_;
  image.l1 = Survey(l1_offset_, l1_entries_);
  image.snapshot_table = snapshot_table_;
  for (Snapshot& snapshot : snapshots_) {
    const SnapshotEntry& entry = snapshot.entry;
    image.snapshots.push_back({entry.id, entry.name, entry.offset_bytes, entry.length_bytes,
                               snapshot.virtual_size, Survey(entry.l1_table_offset, entry.l1_size),
                               std::move(snapshot.guest)});
  }
  host_.Store(bytes_);
  image.refcount_table = {host_.table_offset(), host_.table_clusters() * cluster_size()};
  image.refcount_blocks = host_.block_offsets();
  image.guest = std::move(guest_);
  image.bytes = std::move(bytes_);
  image.data_file_bytes = std::move(data_file_bytes_);
}

}  // namespace qcow2check::testing
