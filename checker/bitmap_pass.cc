// The bitmap pass: bitmaps extension, directory, tables and the tail of the data
// (specification, "Bitmaps").
//
// Needs the header extensions. Makes the list of bitmaps; claims directory, tables and data.
// A bad bitmap is a finding and the others are walked all the same.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "checker/metadata_window.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/quoted.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

// What is wrong with a directory entry itself; empty if nothing.
std::string JudgeEntry(const CheckState& state, const BitmapEntry& bitmap) {
  const uint64_t cluster_size = state.geo().cluster_size();
  if (bitmap.table_entries == 0) return "its table has no entries";
  if (bitmap.table_offset == 0 || !IsAligned(bitmap.table_offset, cluster_size)) {
    return absl::StrFormat("its table offset 0x%x is not aligned", bitmap.table_offset);
  }
  if (bitmap.table_entries > kQemuMaxBitmapTableEntries) return "its table is too large";
  if (bitmap.type != kBitmapTypeDirtyTracking) return absl::StrCat("its type is ", bitmap.type);
  if (bitmap.granularity_bits < kQemuMinGranularityBits ||
      bitmap.granularity_bits > kQemuMaxGranularityBits) {
    return absl::StrCat("its granularity is 2^", bitmap.granularity_bits);
  }
  if ((bitmap.flags & ~(kBitmapInUse | kBitmapAuto)) != 0) {
    return absl::StrFormat("its flags are 0x%x", bitmap.flags);
  }
  if (bitmap.name_bytes == 0 || bitmap.name_bytes > kMaxBitmapNameBytes) {
    return absl::StrCat("its name has ", bitmap.name_bytes, " bytes");
  }
  if (bitmap.extra_data_bytes != 0) return "it has extra data";
  const uint64_t needed =
      DivideRoundingUp(bitmap.DataBytes(state.geo().virtual_size_bytes), cluster_size);
  if ((bitmap.flags & kBitmapInUse) == 0 && bitmap.table_entries != needed) {
    return absl::StrFormat("its table has %d entries where the disk needs %d", bitmap.table_entries,
                           needed);
  }
  return "";
}

// The bits behind the end of the disk in the last cluster of the bitmap's data.
bool HasTailBits(CheckState& state, const BitmapEntry& bitmap, uint64_t data_offset) {
  const uint64_t cluster_size = state.geo().cluster_size();
  const uint64_t bits =
      DivideRoundingUp(state.geo().virtual_size_bytes, uint64_t{1} << bitmap.granularity_bits);
  const uint64_t first_bit = uint64_t{bitmap.table_entries - 1} * cluster_size * 8;
  if (bits < first_bit || bits - first_bit >= cluster_size * 8) return false;
  const uint64_t used = bits - first_bit;
  std::vector<uint8_t> data(std::min(cluster_size - used / 8, kMaxPieceBytes));
  state.Read(HostOffset{data_offset + used / 8}, absl::MakeSpan(data), Structure::kBitmapData);
  if ((data[0] >> (used % 8)) != 0) return true;
  return std::any_of(data.begin() + 1, data.end(), [](uint8_t byte) { return byte != 0; });
}

void ClaimData(CheckState& state, uint64_t offset) {
  state.Count(offset, state.geo().cluster_size(), 1);
  state.bitmap_data.push_back(offset);
}

// What is wrong with the entry of a bitmap table; empty if nothing.
std::string JudgeTableEntry(const CheckState& state, uint64_t entry) {
  const uint64_t offset = EntryOffset(entry);
  if ((entry & kBitmapTableReservedMask) != 0) return "reserved bits are set";
  if (offset != 0 && (entry & 1) != 0) return "it has an offset and the all-ones flag";
  if (!IsAligned(offset, state.geo().cluster_size())) return "it is misaligned";
  if (offset != 0 && state.IsOutside(offset, state.geo().cluster_size())) {
    return "it points outside the file";
  }
  return "";
}

void WalkTable(CheckState& state, const BitmapEntry& bitmap) {
  const uint64_t length = uint64_t{bitmap.table_entries} * 8;
  if (!state.IsOutside(bitmap.table_offset, length) &&
      !state.Spend(bitmap.table_entries, Structure::kBitmapTable)) {
    return;
  }
  if (!state.Claim({Structure::kBitmapTable, bitmap.table_offset, length, std::nullopt}, 1) ||
      SaturatingAdd(bitmap.table_offset, length) > state.file.size_bytes()) {
    state.AddFinding(FindingCode::kBitmapTableInvalid, Structure::kBitmapTable, bitmap.table_offset,
                     length,
                     absl::StrCat("the table of ", Quoted(bitmap.name), " is not in the file"));
    return;
  }
  std::vector<uint8_t> piece;
  for (uint64_t done = 0; done < length && state.MayGoOn(); done += piece.size()) {
    // Holes read as zeros, which is "no data": they need not be read.
    const Extent data = state.file.NextData(HostOffset{bitmap.table_offset + done});
    const uint64_t skip = (data.begin_bytes - (bitmap.table_offset + done)) & ~uint64_t{7};
    done = std::min(length, done + skip);
    piece.resize(std::min(length - done, kMaxPieceBytes));
    if (piece.empty()) break;
    state.Read(HostOffset{bitmap.table_offset + done}, absl::MakeSpan(piece),
               Structure::kBitmapTable);
    for (uint64_t at = 0; at < piece.size(); at += 8) {
      const uint64_t entry = Load64(&piece[at]);
      if (entry == 0) continue;
      const uint64_t place = bitmap.table_offset + done + at;
      std::string wrong = JudgeTableEntry(state, entry);
      if (!wrong.empty()) {
        state.AddFinding(
            FindingCode::kBitmapTableInvalid, Structure::kBitmapTable, place, 8,
            absl::StrFormat("entry %d of %s: %s", (done + at) / 8, Quoted(bitmap.name), wrong));
        continue;
      }
      if (EntryOffset(entry) == 0) continue;
      ClaimData(state, EntryOffset(entry));
      const bool last = (done + at) / 8 + 1 == bitmap.table_entries;
      if (last && (bitmap.flags & kBitmapInUse) == 0 &&
          HasTailBits(state, bitmap, EntryOffset(entry))) {
        state.AddFinding(FindingCode::kBitmapTailBits, Structure::kBitmapData, EntryOffset(entry),
                         state.geo().cluster_size(), Quoted(bitmap.name));
      }
    }
  }
}

// Reads the directory; stops at the first entry whose length cannot be right.
std::vector<BitmapEntry> ReadDirectory(CheckState& state, const BitmapsExtension& extension) {
  std::vector<BitmapEntry> entries;
  const uint64_t stated_end =
      SaturatingAdd(extension.directory_offset, extension.directory_size_bytes);
  const uint64_t end = std::min(stated_end, state.file.size_bytes());
  MetadataWindow window(state, Structure::kBitmapDirectory);
  uint64_t at = extension.directory_offset;
  const uint64_t wanted = std::min(extension.nb_bitmaps, kQemuMaxBitmaps);
  while (entries.size() < wanted && at + kBitmapFixedBytes <= end) {
    BitmapEntry entry = DecodeBitmapFixed(window.Read(at, kBitmapFixedBytes), at);
    // The padding of the last entry is a part of the directory, but need not be in the file.
    const uint64_t entry_end = SaturatingAdd(at, entry.length_bytes);
    if (entry_end > stated_end || entry_end > RoundUp(end, 8)) break;
    const std::vector<uint8_t> name =
        window.Read(at + kBitmapFixedBytes + entry.extra_data_bytes,
                    std::min<uint64_t>(entry.name_bytes, kMaxBitmapNameBytes));
    entry.name.assign(name.begin(), name.end());
    at += entry.length_bytes;
    entries.push_back(std::move(entry));
  }
  if (entries.size() < wanted) {
    state.AddFinding(FindingCode::kBitmapDirectoryInvalid, Structure::kBitmapDirectory, at, 0,
                     absl::StrCat("only ", entries.size(), " of ", wanted, " entries can be read"));
    state.Skip("a part of the bitmap directory", "its entries cannot be read");
  } else if (at < end) {
    state.AddFinding(FindingCode::kBitmapDirectoryInvalid, Structure::kBitmapDirectory, at,
                     end - at, absl::StrCat("there is more behind its ", wanted, " entries"));
    state.Skip("a part of the bitmap directory", "the extension does not name it");
  }
  return entries;
}

std::string JudgeExtension(const CheckState& state, const BitmapsExtension& extension) {
  if (extension.nb_bitmaps == 0) return "it names no bitmaps";
  if (extension.nb_bitmaps > kQemuMaxBitmaps) {
    return absl::StrCat("it names ", extension.nb_bitmaps, " bitmaps");
  }
  if (extension.reserved != 0) return "its reserved field is not zero";
  if (!IsAligned(extension.directory_offset, state.geo().cluster_size()) ||
      extension.directory_offset == 0) {
    return absl::StrFormat("the directory offset 0x%x is not aligned", extension.directory_offset);
  }
  if (extension.directory_size_bytes > kQemuMaxBitmapDirectoryBytes ||
      extension.directory_size_bytes == 0) {
    return absl::StrCat("the directory has ", extension.directory_size_bytes, " bytes");
  }
  return "";
}

void WalkBitmaps(CheckState& state, const BitmapsExtension& extension) {
  if (!state.Claim({Structure::kBitmapDirectory, extension.directory_offset,
                    extension.directory_size_bytes, std::nullopt},
                   1) ||
      SaturatingAdd(extension.directory_offset, extension.directory_size_bytes) >
          state.file.size_bytes()) {
    state.AddFinding(FindingCode::kBitmapDirectoryInvalid, Structure::kBitmapDirectory,
                     extension.directory_offset, extension.directory_size_bytes,
                     "the directory is not in the file");
  }
  absl::flat_hash_set<std::string> names;
  for (BitmapEntry& bitmap : ReadDirectory(state, extension)) {
    std::string wrong = JudgeEntry(state, bitmap);
    if (!wrong.empty()) {
      state.AddFinding(FindingCode::kBitmapDirectoryInvalid, Structure::kBitmapDirectory,
                       bitmap.offset_bytes, bitmap.length_bytes,
                       absl::StrCat("bitmap ", Quoted(bitmap.name), ": ", wrong));
      state.Skip(absl::StrCat("the bitmap ", Quoted(bitmap.name)), wrong);
      continue;
    }
    if (!names.insert(bitmap.name).second) {
      state.AddFinding(FindingCode::kBitmapDuplicate, Structure::kBitmapDirectory,
                       bitmap.offset_bytes, bitmap.length_bytes, Quoted(bitmap.name));
    }
    if ((bitmap.flags & kBitmapInUse) != 0) {
      state.AddFinding(FindingCode::kBitmapInUse, Structure::kBitmapDirectory, bitmap.offset_bytes,
                       bitmap.length_bytes, Quoted(bitmap.name));
    }
    WalkTable(state, bitmap);
    state.bitmaps.push_back(std::move(bitmap));
  }
  state.coverage.bitmaps = state.bitmaps.size();
}

// Bitmaps that are out of date reference nothing, by the format's own rule. But their clusters must
// be known, or they look like the remains of something lost. So they are walked apart, and what is
// wrong with them is nobody's concern.
void FindStaleBitmaps(CheckState& state, const BitmapsExtension& extension) {
  CheckState apart(state.file, state.options);
  apart.header = state.header;
  apart.geometry = state.geometry;
  apart.file_clusters = state.file_clusters;
  apart.memory = state.memory;
  apart.MakeMaps();
  WalkBitmaps(apart, extension);
  state.stale_bitmaps = std::move(apart.expected);
  state.coverage.reads += apart.coverage.reads;
  state.coverage.bytes_read += apart.coverage.bytes_read;
  if (!apart.coverage.complete() || apart.findings.Has(FindingCode::kBitmapDirectoryInvalid) ||
      apart.findings.Has(FindingCode::kBitmapTableInvalid)) {
    state.Skip("a part of the bitmaps that are out of date", "their tables make no sense");
  }
}

}  // namespace

void CheckBitmaps(CheckState& state) {
  const HeaderExtension* place = nullptr;
  for (const HeaderExtension& extension : state.extensions.extensions) {
    if (extension.type == kExtensionBitmaps) place = &extension;
  }
  if (place == nullptr) {
    if (state.header.Has(kBitmapsConsistent)) {
      state.AddFinding(FindingCode::kBitmapExtensionInvalid, Structure::kHeader, 88, 8,
                       "the header says that there are bitmaps, but the extension is missing");
    }
    return;
  }
  const uint64_t length = 8 + uint64_t{place->length_bytes};
  const std::optional<BitmapsExtension> extension = DecodeBitmapsExtension(place->data);
  std::string wrong = extension ? JudgeExtension(state, *extension)
                                : absl::StrCat("it has ", place->length_bytes, " bytes");
  // Without the autoclear bit the extension is stale by the format's own rule: QEMU ignores it,
  // but for its length.
  if (extension && !state.header.Has(kBitmapsConsistent)) {
    state.AddFinding(FindingCode::kBitmapsStale, Structure::kHeaderExtension, place->offset_bytes,
                     length, "");
    if (wrong.empty()) {
      FindStaleBitmaps(state, *extension);
    } else {
      state.Skip("bitmaps that are out of date", wrong);
    }
    return;
  }
  if (!wrong.empty()) {
    state.AddFinding(FindingCode::kBitmapExtensionInvalid, Structure::kHeaderExtension,
                     place->offset_bytes, length, wrong);
    state.Skip("all bitmaps", wrong);
    return;
  }
  WalkBitmaps(state, *extension);
}

}  // namespace qcow2check
