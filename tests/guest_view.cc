#include "tests/guest_view.h"

#include <algorithm>
#include <set>

#include "absl/hash/hash.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "checker/decompress.h"
#include "common/byte_order.h"
#include "common/header.h"
#include "common/snapshot_entry.h"
#include "common/table_entry.h"

namespace qcow2check::testing {
namespace {

constexpr uint64_t kMostSnapshots = 100;

class Reader {
 public:
  explicit Reader(const ImageBytes& image)
      : image_(image.image),
        data_file_(image.data_file),
        header_(DecodeHeader(
            absl::MakeSpan(image.image.data(), std::min<size_t>(image.image.size(), 112)))) {
    const bool known = header_.magic == kMagic && (header_.version == 2 || header_.version == 3);
    if (known && image_.size() >= kHeaderBytesV2) geometry_ = GeometryOf(header_);
  }

  bool opens() const { return geometry_.has_value(); }
  const Header& header() const { return header_; }
  uint64_t unit_bytes() const {
    return geometry_->extended_l2 ? geometry_->cluster_size() / kSubclustersPerCluster
                                  : geometry_->cluster_size();
  }

  // Of a compressed cluster: the first one.
  std::optional<uint64_t> HostClusterOf(uint64_t entry) const {
    const int bits = geometry_->cluster_bits;
    if (!IsCompressed(entry)) return EntryOffset(entry);
    return DecodeCompressed(entry, bits).offset_bytes >> bits << bits;
  }
  uint64_t MappedBytes(uint64_t l1_entries) const {
    return SaturatingMultiply(l1_entries, geometry_->l2_guest_bytes());
  }
  // A flag alone maps nothing.
  bool IsMapped(uint64_t entry) const {
    return KindOfL2Entry(entry, *geometry_) != L2EntryKind::kUnallocated;
  }

  // Calls visit(table_offset, guest_offset, entry, bitmap) for each L2 entry in use that maps [0,
  // end_bytes).
  template <typename Visit>
  void ForEachEntry(uint64_t l1_offset, uint64_t l1_entries, uint64_t end_bytes, Visit visit) {
    // Behind the end of the file there are only zeros.
    if (l1_offset == 0 || l1_offset >= image_.size() ||
        !IsAligned(l1_offset, geometry_->cluster_size()))
      return;
    l1_entries = std::min(l1_entries, DivideRoundingUp(image_.size() - l1_offset, 8));
    for (uint64_t slot = 0; slot < l1_entries; ++slot) {
      const uint64_t first_guest = slot * geometry_->l2_guest_bytes();
      if (first_guest >= end_bytes) return;
      const uint64_t table = EntryOffset(Word(l1_offset + 8 * slot));
      if (table == 0) continue;
      if (!IsAligned(table, geometry_->cluster_size())) {
        broken_slots_.push_back({first_guest, geometry_->l2_guest_bytes()});
        continue;
      }
      VisitTable(table, first_guest, end_bytes, visit);
    }
  }

  // Ranges of L1 entries that lead into the middle of a cluster, of the walks so far.
  const std::vector<GuestRange>& broken_slots() const { return broken_slots_; }

  // What the entry leads to: an error, zeros, or data, which then is in `content` (zeros in it
  // where a part is not mapped).
  GuestRead ReadCluster(uint64_t guest_offset, uint64_t entry, uint64_t bitmap,
                        std::vector<uint8_t>& content) const {
    const L2EntryKind kind = KindOfL2Entry(entry, *geometry_);
    content.resize(geometry_->cluster_size());
    if (kind == L2EntryKind::kCompressed) {
      return ReadCompressed(entry, content) ? GuestRead::kData : GuestRead::kError;
    }
    const bool zero_flag = !geometry_->extended_l2 && (entry & kZeroBit) != 0;
    if (zero_flag && geometry_->version == 2) return GuestRead::kError;
    const uint64_t host = EntryOffset(entry);
    const bool has_cluster = kind == L2EntryKind::kNormal || kind == L2EntryKind::kZeroAllocated;
    if (has_cluster && !IsAligned(host, geometry_->cluster_size())) return GuestRead::kError;
    if (has_cluster && geometry_->data_file && host != guest_offset) return GuestRead::kError;
    const SubclusterBitmap bits = DecodeSubclusterBitmap(bitmap);
    if ((has_cluster ? bits.allocated & bits.reads_as_zeros : bits.allocated) != 0) {
      return GuestRead::kError;
    }
    const std::vector<uint8_t>& file = geometry_->data_file ? data_file_ : image_;
    if (zero_flag || !has_cluster || host >= file.size()) return GuestRead::kZeros;
    CopyFrom(file, host, content);
    if (geometry_->extended_l2) KeepAllocated(bits, content);
    return GuestRead::kData;
  }

 private:
  uint64_t Word(uint64_t offset) const {
    uint8_t word[8] = {};
    for (uint64_t i = 0; i < 8 && offset + i < image_.size(); ++i) word[i] = image_[offset + i];
    return Load64(word);
  }

  // Bytes behind the end of the file are zeros.
  static void CopyFrom(const std::vector<uint8_t>& file, uint64_t offset,
                       std::vector<uint8_t>& content) {
    std::fill(content.begin(), content.end(), uint8_t{0});
    if (offset >= file.size()) return;
    const uint64_t length = std::min<uint64_t>(content.size(), file.size() - offset);
    std::copy_n(file.begin() + static_cast<int64_t>(offset), length, content.begin());
  }

  template <typename Visit>
  void VisitTable(uint64_t table, uint64_t first_guest, uint64_t end_bytes, Visit visit) {
    const uint64_t entry_bytes = geometry_->l2_entry_bytes();
    for (uint64_t index = 0; index < geometry_->l2_entries(); ++index) {
      const uint64_t guest = first_guest + index * geometry_->cluster_size();
      const uint64_t place = table + index * entry_bytes;
      if (guest >= end_bytes || place >= image_.size()) return;
      const uint64_t entry = Word(place);
      const uint64_t bitmap = geometry_->extended_l2 ? Word(place + 8) : 0;
      if (entry != 0 || bitmap != 0) visit(table, guest, entry, bitmap);
    }
  }

  bool ReadCompressed(uint64_t entry, std::vector<uint8_t>& content) const {
    const CompressedRange range = DecodeCompressed(entry, geometry_->cluster_bits);
    if (geometry_->data_file || range.offset_bytes >= image_.size()) return false;
    std::vector<uint8_t> input(range.length_bytes);
    CopyFrom(image_, range.offset_bytes, input);
    const auto type = static_cast<CompressionType>(header_.compression_type);
    return DecompressCluster(input, type, absl::MakeSpan(content)).error.empty();
  }

  void KeepAllocated(const SubclusterBitmap& bits, std::vector<uint8_t>& content) const {
    const auto size = static_cast<int64_t>(unit_bytes());
    for (int i = 0; i < kSubclustersPerCluster; ++i) {
      const auto begin = content.begin() + i * size;
      if ((bits.allocated >> i & 1) == 0) std::fill(begin, begin + size, uint8_t{0});
    }
  }

  const std::vector<uint8_t>& image_;
  const std::vector<uint8_t>& data_file_;
  Header header_;
  std::optional<Geometry> geometry_;
  std::vector<GuestRange> broken_slots_;
};

bool IsZero(absl::Span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

GuestView ReadMapping(Reader& reader, uint64_t l1_offset, uint64_t l1_entries, uint64_t end_bytes) {
  GuestView view = {.opens = true,
                    .unit_bytes = reader.unit_bytes(),
                    .mapped_bytes = reader.MappedBytes(l1_entries),
                    .units = {}};
  const bool has_backing = reader.header().backing_file_offset != 0;
  std::vector<uint8_t> content;
  reader.ForEachEntry(
      l1_offset, l1_entries, end_bytes,
      [&](uint64_t table, uint64_t guest, uint64_t entry, uint64_t bitmap) {
        const GuestRead read = reader.ReadCluster(guest, entry, bitmap, content);
        const bool whole = view.unit_bytes == content.size() || IsCompressed(entry);
        for (uint64_t at = 0; at < content.size() && guest + at < end_bytes;
             at += view.unit_bytes) {
          const SubclusterBitmap bits = DecodeSubclusterBitmap(bitmap);
          const uint64_t i = at / view.unit_bytes;
          const bool mapped = whole ? reader.IsMapped(entry)
                                    : ((bits.allocated | bits.reads_as_zeros) >> i & 1) != 0;
          if (read != GuestRead::kError && !mapped) continue;
          GuestUnit unit = {read, 0};
          if (read == GuestRead::kZeros && !has_backing) unit.read = GuestRead::kNothing;
          if (read == GuestRead::kData) {
            const uint64_t length = std::min(view.unit_bytes, end_bytes - guest - at);
            unit = UnitOf(absl::MakeSpan(content).subspan(at, length), has_backing);
          }
          if (unit.read == GuestRead::kData) {
            unit.host_offset = reader.HostClusterOf(entry);
            unit.table_offset = table;
          }
          if (unit.read != GuestRead::kNothing) view.units[guest + at] = unit;
        }
      });
  for (const GuestRange& slot : reader.broken_slots()) {
    const uint64_t end = std::min(slot.end_bytes(), end_bytes);
    for (uint64_t at = slot.offset_bytes; at < end; at += view.unit_bytes) {
      view.units[at] = {GuestRead::kError, 0};
    }
  }
  return view;
}

bool Covers(const std::vector<GuestRange>& ranges, uint64_t offset) {
  return std::any_of(ranges.begin(), ranges.end(), [&](const GuestRange& range) {
    return range.offset_bytes <= offset && offset < range.end_bytes();
  });
}

absl::string_view Words(const GuestUnit& unit) {
  switch (unit.read) {
    case GuestRead::kNothing:
      return "nothing";
    case GuestRead::kZeros:
      return "zeros";
    case GuestRead::kData:
      return "data";
    case GuestRead::kError:
      return "an error";
  }
  return "";
}

}  // namespace

GuestUnit UnitOf(absl::Span<const uint8_t> bytes, bool has_backing) {
  if (IsZero(bytes)) return {has_backing ? GuestRead::kZeros : GuestRead::kNothing, 0};
  const absl::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return {GuestRead::kData, absl::HashOf(text)};
}

GuestUnit GuestView::At(uint64_t guest_offset) const {
  if (!opens) return {GuestRead::kError, 0};
  const auto unit = units.find(guest_offset);
  return unit == units.end() ? GuestUnit{} : unit->second;
}

GuestView ReadDisk(const ImageBytes& image, uint64_t end_bytes) {
  Reader reader(image);
  if (!reader.opens()) return {};
  return ReadMapping(reader, reader.header().l1_table_offset, reader.header().l1_size, end_bytes);
}

std::vector<GuestView> ReadSnapshots(const ImageBytes& image, uint64_t end_bytes) {
  std::vector<GuestView> views;
  const Header header = Reader(image).header();
  if (!Reader(image).opens()) return views;
  uint64_t at = header.snapshots_offset;
  for (uint64_t i = 0; i < std::min<uint64_t>(header.nb_snapshots, kMostSnapshots); ++i) {
    if (at >= image.image.size() || image.image.size() - at < kSnapshotFixedBytes) break;
    const SnapshotEntry entry =
        DecodeSnapshotFixed(absl::MakeSpan(image.image).subspan(at, kSnapshotFixedBytes), at);
    Reader reader(image);
    views.push_back(ReadMapping(reader, entry.l1_table_offset, entry.l1_size, end_bytes));
    at += entry.length_bytes;
  }
  return views;
}

uint64_t MappedBytes(const std::vector<GuestView>& snapshots) {
  uint64_t mapped_bytes = 0;
  for (const GuestView& view : snapshots) mapped_bytes = std::max(mapped_bytes, view.mapped_bytes);
  return mapped_bytes;
}

uint64_t CountEqual(const GuestView& sound, const GuestView& now) {
  uint64_t equal = 0;
  for (const auto& [offset, unit] : sound.units) equal += now.At(offset) == unit ? 1 : 0;
  return equal;
}

ViewChanges CompareViews(const ViewsOfRepair& views, const std::vector<GuestRange>& lost) {
  ViewChanges changes;
  std::set<uint64_t> offsets;
  for (const GuestView* view : {&views.undamaged, &views.damaged, &views.repaired}) {
    for (const auto& [offset, unit] : view->units) offsets.insert(offset);
  }
  std::map<std::string, std::vector<uint64_t>> wrong;  // where, by kind
  for (const uint64_t offset : offsets) {
    if (offset >= views.undamaged.mapped_bytes) break;
    const GuestUnit was = views.undamaged.At(offset);
    const GuestUnit before = views.damaged.At(offset);
    const GuestUnit now = views.repaired.At(offset);
    if (was.read != GuestRead::kNothing) {
      ++changes.units;
      if (now == was) ++changes.readable;
      if (now == was && before != was) ++changes.regained;
    }
    if (now == was) continue;
    const bool zeros = now.read == GuestRead::kZeros || now.read == GuestRead::kNothing;
    const bool through_a_table =
        before.read != GuestRead::kData || views.l2_tables.contains(before.table_offset);
    const bool was_right = before == was && was.read != GuestRead::kNothing && through_a_table;
    const bool gives_up =
        zeros || (before.read == GuestRead::kError && was.read == GuestRead::kNothing);
    if (!was_right && gives_up && Covers(lost, offset)) {
      ++changes.lost;
      continue;
    }
    const bool was_data =
        !before.host_offset.has_value() || views.data_clusters.contains(*before.host_offset);
    const GuestUnit with_true_l1 = views.with_true_l1.At(offset);
    const bool may_change = before != was || with_true_l1 != was || !through_a_table;
    const bool same_as_it_was =
        now == before || now == with_true_l1 || now == views.with_true_header.At(offset);
    if (may_change && (same_as_it_was || !was_data || !through_a_table)) continue;
    wrong[absl::StrFormat("read %s undamaged, %s before the repair and %s after it", Words(was),
                          before == was ? "the same" : Words(before), Words(now))]
        .push_back(offset);
  }
  for (const auto& [kind, places] : wrong) {
    absl::StrAppendFormat(&changes.violations, "%d units %s, the first at guest 0x%x\n",
                          places.size(), kind, places[0]);
  }
  return changes;
}

}  // namespace qcow2check::testing
