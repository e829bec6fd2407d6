#include "tests/image_places.h"

#include <algorithm>
#include <optional>

#include "absl/types/span.h"
#include "common/bitmap_entry.h"
#include "common/byte_order.h"
#include "common/header.h"
#include "common/header_extension.h"
#include "common/limits.h"
#include "common/snapshot_entry.h"
#include "common/table_entry.h"

namespace qcow2check::testing {
namespace {

// More than any image of the tests has.
constexpr size_t kMostWords = 100'000;
constexpr uint64_t kMostRecords = 1000;

class Survey {
 public:
  Survey(const SparseFile& image, const Header& header, const Geometry& geometry)
      : image_(image), header_(header) {
    places_.geometry = geometry;
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
  bool IsInFile(uint64_t offset, uint64_t length) const {
    return offset <= image_.size_bytes() && length <= image_.size_bytes() - offset;
  }
  // As much of a table as there is.
  uint64_t Clipped(uint64_t offset, uint64_t length) const {
    return offset < image_.size_bytes() ? std::min(length, image_.size_bytes() - offset) : 0;
  }

  // Calls visit(place, word) for each word of the table that is not 0.
  template <typename Visit>
  void ForEachWord(uint64_t offset, uint64_t length, Visit visit) {
    const uint64_t end = offset + Clipped(offset, length) / 8 * 8;
    for (uint64_t at = offset; at < end && places_.words.size() < kMostWords;) {
      const Extent data = image_.NextData(HostOffset{at});
      if (data.empty() || data.begin_bytes >= end) return;
      // Words of a table need not start where a page does.
      at += (data.begin_bytes - at) / 8 * 8;
      const std::vector<uint8_t> bytes =
          image_.Bytes(at, std::min(SparseFile::kPageBytes, end - at));
      for (uint64_t i = 0; i + 8 <= bytes.size(); i += 8) {
        if (const uint64_t word = Load64(&bytes[i]); word != 0) visit(at + i, word);
      }
      at += bytes.size();
    }
  }

  void AddWord(PlaceKind kind, uint64_t offset, int bytes = 8) {
    if (places_.words.size() < kMostWords) places_.words.push_back({kind, offset, bytes});
  }
  bool AddTable(PlaceKind kind, uint64_t offset, uint64_t length) {
    if (Clipped(offset, length) == 0 || !seen_.insert(offset).second) return false;
    places_.tables.push_back({kind, offset, Clipped(offset, length)});
    return true;
  }

  void AddL1(uint64_t offset, uint64_t entries) {
    if (entries == 0 || !AddTable(PlaceKind::kL1, offset, entries * 8)) return;
    ForEachWord(offset, entries * 8, [&](uint64_t place, uint64_t entry) {
      AddWord(PlaceKind::kL1, place);
      AddL2(EntryOffset(entry));
    });
  }

  void AddL2(uint64_t offset) {
    const Geometry& geometry = places_.geometry;
    if (!AddTable(PlaceKind::kL2, offset, geometry.cluster_size())) return;
    places_.l2_tables.insert(offset);
    ForEachWord(offset, geometry.cluster_size(), [&](uint64_t place, uint64_t word) {
      AddWord(PlaceKind::kL2, place);
      // The others are bitmaps of subclusters.
      if ((place - offset) % geometry.l2_entry_bytes() == 0) AddData(word);
    });
  }

  void AddData(uint64_t entry) {
    const Geometry& geometry = places_.geometry;
    const L2EntryKind kind = KindOfL2Entry(entry, geometry);
    if (geometry.data_file) return;
    if (kind == L2EntryKind::kNormal) places_.data_clusters.insert(EntryOffset(entry));
    if (kind != L2EntryKind::kCompressed) return;
    const CompressedRange range = DecodeCompressed(entry, geometry.cluster_bits);
    const uint64_t size = geometry.cluster_size();
    for (uint64_t cluster = range.offset_bytes / size * size; cluster < range.end_bytes();
         cluster += size) {
      places_.data_clusters.insert(cluster);
      places_.compressed_clusters.insert(cluster);
    }
  }

  void AddSnapshots() {
    uint64_t at = header_.snapshots_offset;
    for (uint64_t i = 0; i < std::min<uint64_t>(header_.nb_snapshots, kMostRecords); ++i) {
      if (!IsInFile(at, kSnapshotFixedBytes)) break;
      const SnapshotEntry entry = DecodeSnapshotFixed(image_.Bytes(at, kSnapshotFixedBytes), at);
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
    const uint64_t area = std::min(header_.cluster_size(), uint64_t{2} << 20);
    uint64_t end = area;
    if (header_.backing_file_offset != 0) end = std::min(end, header_.backing_file_offset);
    const HeaderExtensionList list = ParseHeaderExtensions(
        image_.Bytes(0, std::min(area, image_.size_bytes())), header_.header_length, end);
    for (const HeaderExtension& extension : list.extensions) {
      if (extension.type == type) return extension;
    }
    return std::nullopt;
  }

  void AddBitmaps() {
    const std::optional<HeaderExtension> extension = FindExtension(kExtensionBitmaps);
    if (!extension.has_value()) return;
    const std::optional<BitmapsExtension> bitmaps = DecodeBitmapsExtension(extension->data);
    if (!bitmaps.has_value()) return;
    AddWord(PlaceKind::kHeaderField, extension->offset_bytes + 8, 4);  // number, length, offset
    AddWord(PlaceKind::kHeaderField, extension->offset_bytes + 16);
    AddWord(PlaceKind::kHeaderField, extension->offset_bytes + 24);
    AddTable(PlaceKind::kBitmapDirectory, bitmaps->directory_offset, bitmaps->directory_size_bytes);
    uint64_t at = bitmaps->directory_offset;
    for (uint64_t i = 0; i < std::min<uint64_t>(bitmaps->nb_bitmaps, kMostRecords); ++i) {
      if (!IsInFile(at, kBitmapFixedBytes)) return;
      const BitmapEntry entry = DecodeBitmapFixed(image_.Bytes(at, kBitmapFixedBytes), at);
      AddWord(PlaceKind::kBitmapDirectory, at);
      AddWord(PlaceKind::kBitmapDirectory, at + 8, 4);
      AddWord(PlaceKind::kBitmapDirectory, at + 12, 4);
      const uint64_t length = Clipped(entry.table_offset, uint64_t{entry.table_entries} * 8);
      AddTable(PlaceKind::kBitmapTable, entry.table_offset, length);
      for (uint64_t e = 0; e < std::min<uint64_t>(length / 8, kMostWords); ++e) {
        AddWord(PlaceKind::kBitmapTable, entry.table_offset + 8 * e);
      }
      at += entry.length_bytes;
    }
  }

  void AddRefcounts() {
    const uint64_t table = header_.refcount_table_offset;
    const uint64_t length =
        Clipped(table, header_.refcount_table_clusters * header_.cluster_size());
    AddTable(PlaceKind::kRefcountTable, table, length);
    places_.refcount_blocks.resize(std::min<uint64_t>(length / 8, kMostWords));
    ForEachWord(table, length, [&](uint64_t place, uint64_t block) {
      const uint64_t index = (place - table) / 8;
      if (index >= places_.refcount_blocks.size()) return;
      places_.refcount_blocks[index] = block;
      AddWord(PlaceKind::kRefcountTable, place);
      AddTable(PlaceKind::kRefcountBlock, block, header_.cluster_size());
    });
  }

  const SparseFile& image_;
  const Header header_;
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

ImagePlaces PlacesOf(const SparseFile& image) {
  const Header header = DecodeHeader(image.Bytes(0, kHeaderBytesKnown));
  const std::optional<Geometry> geometry = GeometryOf(header);
  if (!geometry.has_value()) return {};
  return Survey(image, header, *geometry).Run();
}

ImagePlaces PlacesOf(const std::vector<uint8_t>& image) {
  return PlacesOf(SparseFile(absl::MakeConstSpan(image)));
}

}  // namespace qcow2check::testing
