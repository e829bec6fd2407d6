#include "common/header_extension.h"

#include <algorithm>

#include "common/byte_order.h"
#include "common/checked_math.h"

namespace qcow2check {

HeaderExtensionList ParseHeaderExtensions(absl::Span<const uint8_t> first_cluster, uint64_t begin,
                                          uint64_t end) {
  HeaderExtensionList list;
  end = std::min<uint64_t>(end, first_cluster.size());
  uint64_t at = begin;
  while (at <= end && end - at >= 8) {
    HeaderExtension extension;
    extension.offset_bytes = at;
    extension.type = Load32(&first_cluster[at]);
    extension.length_bytes = Load32(&first_cluster[at + 4]);
    const uint64_t data_at = at + 8;
    // QEMU, too, judges the length of the end marker before it sees which type this is.
    if (extension.length_bytes > end - data_at) {
      list.overflow = std::move(extension);
      break;
    }
    if (extension.type == kExtensionEnd) {
      list.has_end_marker = true;
      at = data_at;
      break;
    }
    const uint64_t data_end = data_at + extension.length_bytes;
    extension.data.assign(first_cluster.begin() + static_cast<int64_t>(data_at),
                          first_cluster.begin() + static_cast<int64_t>(data_end));
    // Padding follows the length, not the place: behind a header of odd length nothing is aligned.
    const uint64_t next = std::min(data_at + RoundUp(extension.length_bytes, uint64_t{8}), end);
    extension.padding_is_zero = std::all_of(first_cluster.begin() + static_cast<int64_t>(data_end),
                                            first_cluster.begin() + static_cast<int64_t>(next),
                                            [](uint8_t byte) { return byte == 0; });
    list.extensions.push_back(std::move(extension));
    at = next;
  }
  list.end_bytes = std::min(at, end);
  return list;
}

absl::string_view ExtensionName(uint32_t type) {
  switch (type) {
    case kExtensionEnd:
      return "end of header extensions";
    case kExtensionBackingFormat:
      return "backing file format";
    case kExtensionFeatureNames:
      return "feature name table";
    case kExtensionBitmaps:
      return "bitmaps";
    case kExtensionCrypto:
      return "encryption header pointer";
    case kExtensionDataFile:
      return "external data file name";
    case kExtensionRepairNote:
      return "note of a repair";
    default:
      return "";
  }
}

std::vector<FeatureNameEntry> DecodeFeatureNames(absl::Span<const uint8_t> data) {
  std::vector<FeatureNameEntry> entries;
  for (size_t at = 0; at + kFeatureNameEntryBytes <= data.size(); at += kFeatureNameEntryBytes) {
    FeatureNameEntry entry;
    entry.type = data[at];
    entry.bit = data[at + 1];
    const auto begin = data.begin() + static_cast<int64_t>(at) + 2;
    const auto end = data.begin() + static_cast<int64_t>(at + kFeatureNameEntryBytes);
    entry.name.assign(begin, std::find(begin, end, uint8_t{0}));
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::optional<BitmapsExtension> DecodeBitmapsExtension(absl::Span<const uint8_t> data) {
  if (data.size() != kBitmapsExtensionBytes) return std::nullopt;
  return BitmapsExtension{Load32(data.data()), Load32(data.data() + 4), Load64(data.data() + 8),
                          Load64(data.data() + 16)};
}

std::optional<CryptoExtension> DecodeCryptoExtension(absl::Span<const uint8_t> data) {
  if (data.size() != kCryptoExtensionBytes) return std::nullopt;
  return CryptoExtension{Load64(data.data()), Load64(data.data() + 8)};
}

std::optional<RepairNote> DecodeRepairNote(absl::Span<const uint8_t> data) {
  if (data.size() != kRepairNoteBytes) return std::nullopt;
  if (Load32(data.data()) != kRepairNoteVersion) return std::nullopt;
  const auto orphans = static_cast<OrphanNote>(Load32(&data[4]));
  const bool is_known = orphans <= OrphanNote::kCutOff;
  return RepairNote{kRepairNoteVersion, is_known ? orphans : OrphanNote::kGivenUp};
}

std::vector<uint8_t> EncodeRepairNote(const RepairNote& note) {
  std::vector<uint8_t> data(kRepairNoteBytes);
  Store32(data.data(), note.version);
  Store32(&data[4], static_cast<uint32_t>(note.orphans));
  return data;
}

}  // namespace qcow2check
