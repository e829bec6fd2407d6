#include "repair/bitmap_directory.h"

#include <algorithm>
#include <utility>

#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "common/table_entry.h"
#include "repair/kept_page.h"
#include "repair/plain_text.h"

namespace qcow2check {

std::optional<BitmapsPlace> FindBitmapsExtension(const CheckState& state) {
  std::optional<BitmapsPlace> place;
  const std::vector<HeaderExtension>& extensions = state.extensions.extensions;
  for (const HeaderExtension& extension : extensions) {
    if (extension.type != kExtensionBitmaps) continue;
    place = {extension.offset_bytes, extension.length_bytes, DecodeBitmapsExtension(extension.data),
             &extension == &extensions.back() && !state.extensions.overflow};
  }
  return place;
}

std::optional<BitmapEntry> ReadBitmapEntry(const ImageFile& file, uint64_t at, uint64_t end) {
  std::vector<uint8_t> fixed(kBitmapFixedBytes);
  if (at >= end || end - at < fixed.size() ||
      !file.ReadAt(HostOffset{at}, absl::MakeSpan(fixed)).ok()) {
    return std::nullopt;
  }
  BitmapEntry entry = DecodeBitmapFixed(fixed, at);
  if (entry.length_bytes > end - at) return std::nullopt;
  std::vector<uint8_t> name(std::min<uint64_t>(entry.name_bytes, kMaxBitmapNameBytes));
  const HostOffset name_at = {at + kBitmapFixedBytes + entry.extra_data_bytes};
  if (!file.ReadAt(name_at, absl::MakeSpan(name)).ok()) return std::nullopt;
  entry.name.assign(name.begin(), name.end());
  return entry;
}

uint64_t DirectoryEnd(const ImageFile& file, const BitmapsExtension& fields) {
  const uint64_t size = std::min(fields.directory_size_bytes, kQemuMaxBitmapDirectoryBytes);
  return std::min(SaturatingAdd(fields.directory_offset, size), RoundUp(file.size_bytes(), 8));
}

std::vector<BitmapEntry> ReadBitmapDirectory(const ImageFile& file,
                                             const BitmapsExtension& fields) {
  const KeptPage directory(file);
  std::vector<BitmapEntry> entries;
  uint64_t at = fields.directory_offset;
  const uint64_t end = DirectoryEnd(file, fields);
  while (entries.size() < std::min(fields.nb_bitmaps, kQemuMaxBitmaps)) {
    std::optional<BitmapEntry> entry = ReadBitmapEntry(directory, at, end);
    if (!entry) break;
    at += entry->length_bytes;
    entries.push_back(*std::move(entry));
  }
  return entries;
}

bool IsPlausible(const BitmapEntry& entry, const ImageFile& file, const Geometry& geometry) {
  const std::vector<uint8_t> name(entry.name.begin(), entry.name.end());
  return entry.table_offset != 0 && IsAligned(entry.table_offset, geometry.cluster_size()) &&
         entry.table_offset < file.size_bytes() && entry.table_entries != 0 &&
         entry.type == kBitmapTypeDirtyTracking &&
         entry.granularity_bits >= kQemuMinGranularityBits &&
         entry.granularity_bits <= kQemuMaxGranularityBits &&
         (entry.flags & ~(kBitmapInUse | kBitmapAuto)) == 0 && entry.extra_data_bytes == 0 &&
         entry.name_bytes != 0 && entry.name_bytes <= kMaxBitmapNameBytes && IsPlainText(name);
}

bool IsWholeDirectory(const ImageFile& file, const Geometry& geometry,
                      const BitmapsExtension& fields) {
  if (fields.nb_bitmaps == 0 || fields.nb_bitmaps > kQemuMaxBitmaps || fields.reserved != 0 ||
      fields.directory_offset == 0 ||
      !IsAligned(fields.directory_offset, geometry.cluster_size())) {
    return false;
  }
  const std::vector<BitmapEntry> entries = ReadBitmapDirectory(file, fields);
  return entries.size() == fields.nb_bitmaps &&
         entries.back().offset_bytes + entries.back().length_bytes ==
             fields.directory_offset + fields.directory_size_bytes &&
         std::all_of(entries.begin(), entries.end(),
                     [&](const BitmapEntry& entry) { return IsPlausible(entry, file, geometry); });
}

uint64_t TableEntriesNeeded(const BitmapEntry& entry, const Geometry& geometry) {
  const int bits = std::min<int>(entry.granularity_bits, kQemuMaxGranularityBits);
  const uint64_t granules = DivideRoundingUp(geometry.virtual_size_bytes, uint64_t{1} << bits);
  return DivideRoundingUp(DivideRoundingUp(granules, 8), geometry.cluster_size());
}

bool IsTableEntry(uint64_t entry, const ImageFile& file, const Geometry& geometry) {
  const uint64_t offset = EntryOffset(entry);
  return (entry & kBitmapTableReservedMask) == 0 && (offset == 0 || (entry & 1) == 0) &&
         IsAligned(offset, geometry.cluster_size()) && offset < file.size_bytes();
}

bool ForEachTableEntry(const ImageFile& file, uint64_t table_offset, uint64_t entries,
                       const std::function<void(uint64_t, uint64_t)>& visit) {
  const uint64_t end = table_offset + entries * 8;
  std::vector<uint8_t> piece;
  for (uint64_t at = table_offset; at < end; at += piece.size()) {
    // Holes hold only entries that are 0.
    const Extent data = file.NextData(HostOffset{at});
    if (data.empty() || data.begin_bytes >= end) break;
    at = std::max(at, data.begin_bytes & ~uint64_t{7});
    piece.resize(std::min(end - at, kMaxPieceBytes));
    if (!file.ReadAt(HostOffset{at}, absl::MakeSpan(piece)).ok()) return false;
    for (uint64_t i = 0; i < piece.size(); i += 8) {
      const uint64_t entry = Load64(&piece[i]);
      if (entry != 0) visit((at + i - table_offset) / 8, entry);
    }
  }
  return true;
}

}  // namespace qcow2check
