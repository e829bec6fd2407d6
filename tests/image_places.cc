#include "tests/image_places.h"

#include <optional>

#include "absl/types/span.h"
#include "common/bitmap_entry.h"
#include "common/byte_order.h"
#include "common/check.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/limits.h"
#include "common/snapshot_entry.h"
#include "common/table_entry.h"

namespace qcow2check::testing {
namespace {

class Survey {
 public:
  explicit Survey(const std::vector<uint8_t>& image)
      : image_(image), header_(DecodeHeader(Bytes(0, kHeaderBytesKnown))) {
    places_.geometry = *GeometryOf(header_);
  }

  ImagePlaces Run() && {
    for (const HeaderField& field : kHeaderFields) {
      const bool leads_somewhere = field.name == "l1_table_offset" || field.name == "l1_size" ||
                                   field.name == "refcount_table_offset" ||
                                   field.name == "refcount_table_clusters" ||
                                   field.name == "nb_snapshots" || field.name == "snapshots_offset";
      if (leads_somewhere)
        AddWord(PlaceKind::kHeaderField, field.offset, static_cast<int>(field.width));
    }
    AddL1(header_.l1_table_offset, header_.l1_size);
    AddSnapshots();
    AddBitmaps();
    AddRefcounts();
    return std::move(places_);
  }

 private:
  absl::Span<const uint8_t> Bytes(uint64_t offset, uint64_t length) const {
    QCOW2CHECK_CHECK(offset <= image_.size());
    return absl::MakeSpan(image_).subspan(offset, length);
  }
  uint64_t Word(uint64_t offset) const { return Load64(Bytes(offset, 8).data()); }

  void AddWord(PlaceKind kind, uint64_t offset, int bytes = 8) {
    places_.words.push_back({kind, offset, bytes});
  }
  bool AddTable(PlaceKind kind, uint64_t offset, uint64_t length) {
    if (!seen_.insert(offset).second) return false;
    places_.tables.push_back({kind, offset, length});
    return true;
  }

  void AddL1(uint64_t offset, uint64_t entries) {
    if (entries == 0 || !AddTable(PlaceKind::kL1, offset, entries * 8)) return;
    for (uint64_t i = 0; i < entries; ++i) {
      const uint64_t entry = Word(offset + 8 * i);
      if (entry == 0) continue;
      AddWord(PlaceKind::kL1, offset + 8 * i);
      AddL2(EntryOffset(entry));
    }
  }

  void AddL2(uint64_t offset) {
    const Geometry& geometry = places_.geometry;
    if (!AddTable(PlaceKind::kL2, offset, geometry.cluster_size())) return;
    places_.l2_tables.insert(offset);
    const uint64_t step = geometry.l2_entry_bytes();
    for (uint64_t place = offset; place < offset + geometry.cluster_size(); place += step) {
      if (Word(place) != 0) {
        AddWord(PlaceKind::kL2, place);
        AddData(Word(place));
      }
      if (geometry.extended_l2 && Word(place + 8) != 0) AddWord(PlaceKind::kL2, place + 8);
    }
  }

  void AddData(uint64_t entry) {
    const Geometry& geometry = places_.geometry;
    const L2EntryKind kind = KindOfL2Entry(entry, geometry);
    if (geometry.data_file) return;
    if (kind == L2EntryKind::kNormal) places_.data_clusters.insert(EntryOffset(entry));
    if (kind != L2EntryKind::kCompressed) return;
    const CompressedRange range = DecodeCompressed(entry, geometry.cluster_bits);
    for (uint64_t at = range.offset_bytes; at < range.end_bytes(); at += kSectorBytes) {
      const uint64_t cluster = at / geometry.cluster_size() * geometry.cluster_size();
      places_.data_clusters.insert(cluster);
      places_.compressed_clusters.insert(cluster);
    }
  }

  void AddSnapshots() {
    uint64_t at = header_.snapshots_offset;
    for (uint32_t i = 0; i < header_.nb_snapshots; ++i) {
      const SnapshotEntry entry = DecodeSnapshotFixed(Bytes(at, kSnapshotFixedBytes), at);
      AddWord(PlaceKind::kSnapshotTable, at);  // offset and size of its L1 table
      AddWord(PlaceKind::kSnapshotTable, at + 8, 4);
      AddWord(PlaceKind::kSnapshotTable, at + 12, 4);  // lengths of its id and name
      AddWord(PlaceKind::kSnapshotTable, at + 36, 4);  // length of the extra data
      AddL1(entry.l1_table_offset, entry.l1_size);
      at += entry.length_bytes;
    }
    if (header_.nb_snapshots == 0) return;
    AddTable(PlaceKind::kSnapshotTable, header_.snapshots_offset, at - header_.snapshots_offset);
  }

  std::optional<HeaderExtension> FindExtension(uint32_t type) const {
    uint64_t end = header_.cluster_size();
    if (header_.backing_file_offset != 0) end = header_.backing_file_offset;
    const HeaderExtensionList list =
        ParseHeaderExtensions(Bytes(0, header_.cluster_size()), header_.header_length, end);
    for (const HeaderExtension& extension : list.extensions) {
      if (extension.type == type) return extension;
    }
    return std::nullopt;
  }

  void AddBitmaps() {
    const std::optional<HeaderExtension> extension = FindExtension(kExtensionBitmaps);
    if (!extension.has_value()) return;
    const BitmapsExtension bitmaps = *DecodeBitmapsExtension(extension->data);
    AddWord(PlaceKind::kHeaderField, extension->offset_bytes + 8, 4);  // number, length, offset
    AddWord(PlaceKind::kHeaderField, extension->offset_bytes + 16);
    AddWord(PlaceKind::kHeaderField, extension->offset_bytes + 24);
    AddTable(PlaceKind::kBitmapDirectory, bitmaps.directory_offset, bitmaps.directory_size_bytes);
    uint64_t at = bitmaps.directory_offset;
    for (uint32_t i = 0; i < bitmaps.nb_bitmaps; ++i) {
      const BitmapEntry entry = DecodeBitmapFixed(Bytes(at, kBitmapFixedBytes), at);
      AddWord(PlaceKind::kBitmapDirectory, at);
      AddWord(PlaceKind::kBitmapDirectory, at + 8, 4);
      AddWord(PlaceKind::kBitmapDirectory, at + 12, 4);
      AddTable(PlaceKind::kBitmapTable, entry.table_offset, uint64_t{entry.table_entries} * 8);
      for (uint64_t e = 0; e < entry.table_entries; ++e) {
        AddWord(PlaceKind::kBitmapTable, entry.table_offset + 8 * e);
      }
      at += entry.length_bytes;
    }
  }

  void AddRefcounts() {
    const uint64_t length = header_.refcount_table_clusters * header_.cluster_size();
    AddTable(PlaceKind::kRefcountTable, header_.refcount_table_offset, length);
    places_.refcount_blocks.resize(length / 8);
    for (uint64_t i = 0; i < length / 8; ++i) {
      const uint64_t block = Word(header_.refcount_table_offset + 8 * i);
      if (block == 0) continue;
      places_.refcount_blocks[i] = block;
      AddWord(PlaceKind::kRefcountTable, header_.refcount_table_offset + 8 * i);
      AddTable(PlaceKind::kRefcountBlock, block, header_.cluster_size());
    }
  }

  const std::vector<uint8_t>& image_;
  Header header_;
  ImagePlaces places_;
  std::set<uint64_t> seen_;
};

}  // namespace

absl::string_view NameOf(PlaceKind kind) {
  switch (kind) {
    case PlaceKind::kHeaderField:
      return "header";
    case PlaceKind::kL1:
      return "L1 table";
    case PlaceKind::kL2:
      return "L2 table";
    case PlaceKind::kRefcountTable:
      return "refcount table";
    case PlaceKind::kRefcountBlock:
      return "refcount block";
    case PlaceKind::kSnapshotTable:
      return "snapshot table";
    case PlaceKind::kBitmapDirectory:
      return "bitmap directory";
    case PlaceKind::kBitmapTable:
      return "bitmap table";
  }
  return "";
}

std::vector<PlacedWord> ImagePlaces::WordsOf(PlaceKind kind) const {
  std::vector<PlacedWord> found;
  for (const PlacedWord& word : words) {
    if (word.kind == kind) found.push_back(word);
  }
  return found;
}

ImagePlaces PlacesOf(const std::vector<uint8_t>& image) { return Survey(image).Run(); }

}  // namespace qcow2check::testing
