#include "cli/inspect_text.h"

#include <algorithm>
#include <array>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "cli/format_bytes.h"
#include "cli/header_meaning.h"
#include "cli/printable.h"
#include "common/byte_order.h"

namespace qcow2check {
namespace {

std::string HexBytes(absl::Span<const uint8_t> bytes) {
  return absl::StrJoin(
      bytes, " ", [](std::string* out, uint8_t byte) { absl::StrAppendFormat(out, "%02x", byte); });
}

// A table entry as its bytes are in the file.
std::string EntryBytes(uint64_t entry) {
  std::array<uint8_t, 8> bytes;
  Store64(bytes.data(), entry);
  return HexBytes(bytes);
}

std::string Quoted(absl::string_view text) { return absl::StrCat("\"", Printable(text), "\""); }

std::string Counted(uint64_t count, absl::string_view one, absl::string_view many) {
  return absl::StrCat(FormatCount(count), " ", count == 1 ? one : many);
}

std::string Range(uint64_t begin, uint64_t length) {
  return absl::StrCat(begin == 0 ? "0" : FormatBytes(begin), " to ",
                      FormatBytes(SaturatingAdd(begin, length)));
}

std::string LeftOut(uint64_t left_out, absl::string_view indent) {
  if (left_out == 0) return "";
  return absl::StrCat(indent, "... and ", FormatCount(left_out), " more\n");
}

// A section's text, or why there is none.
template <typename View, typename ToText>
void AddSection(std::string& text, absl::string_view title, const Section<View>& section,
                ToText to_text) {
  if (!section) return;
  absl::StrAppend(&text, "\n");
  if (section->ok()) {
    absl::StrAppend(&text, to_text(**section));
  } else {
    absl::StrAppend(&text, title, ": cannot be shown: ", Printable(section->status().message()),
                    "\n");
  }
}

// --- Header ---

std::string FieldText(const HeaderFieldView& field, const HeaderView& view) {
  constexpr size_t kBytesShown = 8;
  const absl::Span<const uint8_t> bytes = absl::MakeConstSpan(field.bytes);
  const bool in_hex = field.name == "magic" || absl::EndsWith(field.name, "_features");
  const std::string value = !field.value ? "-"
                            : in_hex     ? absl::StrFormat("0x%x", *field.value)
                                         : absl::StrCat(*field.value);
  std::string text = absl::StrFormat("%6d  %-23s  %-23s  %-12s %s\n", field.offset,
                                     HexBytes(bytes.first(std::min(bytes.size(), kBytesShown))),
                                     field.name, value, Printable(MeaningOf(field, view)));
  for (size_t at = kBytesShown; at < bytes.size(); at += kBytesShown) {
    absl::StrAppendFormat(&text, "%6d  %s\n", field.offset + at,
                          HexBytes(bytes.subspan(at, kBytesShown)));
  }
  return text;
}

std::string GeometryText(const HeaderView& view) {
  const Geometry& geometry = *view.geometry;
  std::string text = absl::StrFormat(
      "\nGeometry\n"
      "  L2 tables     one cluster each, l2_bits %d: %s of %d bytes, for %s of the disk\n",
      geometry.cluster_bits - (geometry.extended_l2 ? 4 : 3),
      Counted(geometry.l2_entries(), "entry", "entries"), geometry.l2_entry_bytes(),
      FormatBytes(geometry.l2_guest_bytes()));
  if (geometry.extended_l2) {
    absl::StrAppendFormat(&text, "  Subclusters   %d in a cluster, of %s\n", kSubclustersPerCluster,
                          FormatBytes(geometry.cluster_size() / kSubclustersPerCluster));
  }
  if (view.refcounts_readable) {
    const uint64_t counted =
        SaturatingMultiply(geometry.refcount_block_entries(), geometry.cluster_size());
    absl::StrAppendFormat(&text, "  Refcounts     of %s, %s in a block, for %s of the file\n",
                          Counted(static_cast<uint64_t>(geometry.refcount_bits()), "bit", "bits"),
                          FormatCount(geometry.refcount_block_entries()), FormatBytes(counted));
  }
  return text;
}

std::string HeaderText(const HeaderView& view) {
  std::string text = absl::StrFormat("\nHeader\n%6s  %-23s  %-23s  %-12s %s\n", "offset", "bytes",
                                     "field", "value", "meaning");
  for (const HeaderFieldView& field : view.fields) absl::StrAppend(&text, FieldText(field, view));
  if (view.geometry) absl::StrAppend(&text, GeometryText(view));
  return text;
}

// --- Header extensions ---

std::string FeatureNamesText(const HeaderExtension& extension) {
  static constexpr std::array<absl::string_view, 3> kTypes = {"incompatible", "compatible",
                                                              "autoclear"};
  std::string text;
  for (const FeatureNameEntry& row : DecodeFeatureNames(extension.data)) {
    const std::string type =
        row.type < kTypes.size() ? std::string(kTypes[row.type]) : absl::StrCat("type ", row.type);
    absl::StrAppendFormat(&text, "            %s bit %d: %s\n", type, row.bit, Quoted(row.name));
  }
  return text;
}

std::string ExtensionDetail(const HeaderExtension& extension) {
  const std::string data(extension.data.begin(), extension.data.end());
  switch (extension.type) {
    case kExtensionBackingFormat:
    case kExtensionDataFile:
      return Quoted(data);
    case kExtensionFeatureNames:
      return Counted(extension.length_bytes / kFeatureNameEntryBytes, "name", "names");
    case kExtensionBitmaps:
      if (const auto bitmaps = DecodeBitmapsExtension(extension.data)) {
        return absl::StrFormat(
            "%s, directory of %s at 0x%x", Counted(bitmaps->nb_bitmaps, "bitmap", "bitmaps"),
            Counted(bitmaps->directory_size_bytes, "byte", "bytes"), bitmaps->directory_offset);
      }
      break;
    case kExtensionCrypto:
      if (const auto crypto = DecodeCryptoExtension(extension.data)) {
        return absl::StrFormat("LUKS header of %s at 0x%x", FormatBytes(crypto->length_bytes),
                               crypto->offset);
      }
      break;
    default:
      break;
  }
  constexpr size_t kBytesShown = 16;
  const absl::Span<const uint8_t> bytes = absl::MakeConstSpan(extension.data);
  return absl::StrCat(HexBytes(bytes.first(std::min(bytes.size(), kBytesShown))),
                      bytes.size() > kBytesShown ? " ..." : "");
}

std::string ExtensionsText(const ExtensionsView& view) {
  std::string text =
      absl::StrFormat("Header extensions: %d, ending at byte %d%s\n", view.extensions.total(),
                      view.end_bytes, view.has_end_marker ? "" : " without an end marker");
  for (const HeaderExtension& extension : view.extensions.items) {
    const absl::string_view name = ExtensionName(extension.type);
    absl::StrAppendFormat(
        &text, "%6d  0x%08x  %-25s  %s: %s%s\n", extension.offset_bytes, extension.type,
        name.empty() ? "unknown" : name, Counted(extension.length_bytes, "byte", "bytes"),
        ExtensionDetail(extension), extension.padding_is_zero ? "" : " (padding is not zero)");
    if (extension.type == kExtensionFeatureNames) {
      absl::StrAppend(&text, FeatureNamesText(extension));
    }
  }
  absl::StrAppend(&text, LeftOut(view.extensions.left_out, "  "));
  if (view.overflow) {
    absl::StrAppendFormat(&text, "%6d  0x%08x  claims %s, more than there are\n",
                          view.overflow->offset_bytes, view.overflow->type,
                          Counted(view.overflow->length_bytes, "byte", "bytes"));
  }
  return text;
}

// --- Tables ---

std::string L1EntryText(uint64_t entry) {
  std::string text = EntryOffset(entry) == 0
                         ? "no L2 table"
                         : absl::StrFormat("L2 table at 0x%x", EntryOffset(entry));
  if (IsCopied(entry)) absl::StrAppend(&text, ", COPIED");
  if ((entry & kL1ReservedMask) != 0) {
    absl::StrAppendFormat(&text, ", reserved bits 0x%x", entry & kL1ReservedMask);
  }
  return text;
}

std::string L1Text(const L1View& view) {
  std::string text = absl::StrFormat("L1 table at 0x%x (%d): %s, %d in use\n", view.offset.bytes,
                                     view.offset.bytes, Counted(view.entries, "entry", "entries"),
                                     view.used.total());
  if (view.entries_in_file < view.entries) {
    absl::StrAppendFormat(&text, "  the file ends inside it: it has %s\n",
                          Counted(view.entries_in_file, "entry", "entries"));
  }
  for (const L1EntryView& entry : view.used.items) {
    absl::StrAppendFormat(&text, "  slot %-6d %s  %s, guest from %s (0x%x)\n", entry.l1_index,
                          EntryBytes(entry.entry), L1EntryText(entry.entry),
                          FormatBytes(entry.guest.bytes), entry.guest.bytes);
  }
  return absl::StrCat(text, LeftOut(view.used.left_out, "  "));
}

std::string RunText(const RefcountRun& run) {
  const std::string clusters = run.clusters == 1
                                   ? absl::StrCat("cluster ", run.first_cluster)
                                   : absl::StrCat("clusters ", run.first_cluster, " to ",
                                                  run.first_cluster + run.clusters - 1);
  return absl::StrCat("    ", clusters, ": refcount ", run.refcount, "\n");
}

std::string RefcountsText(const RefcountsView& view) {
  std::string text = absl::StrFormat(
      "Refcount table at 0x%x (%d): %s, %d in use; refcounts of %s, %s in a block\n",
      view.table_offset.bytes, view.table_offset.bytes,
      Counted(view.table_entries, "entry", "entries"), view.blocks.total(),
      Counted(static_cast<uint64_t>(view.refcount_bits), "bit", "bits"),
      FormatCount(view.block_entries));
  if (view.table_entries_in_file < view.table_entries) {
    absl::StrAppendFormat(&text, "  the file ends inside it: it has %s\n",
                          Counted(view.table_entries_in_file, "entry", "entries"));
  }
  for (const RefcountBlockView& block : view.blocks.items) {
    absl::StrAppendFormat(&text, "  entry %-5d %s  block at 0x%x", block.table_index,
                          EntryBytes(block.entry), block.offset.bytes);
    if ((block.entry & kRefcountTableReservedMask) != 0) {
      absl::StrAppendFormat(&text, ", reserved bits 0x%x",
                            block.entry & kRefcountTableReservedMask);
    }
    if (!block.not_read.empty()) {
      absl::StrAppend(&text, ", not read: ", block.not_read, "\n");
      continue;
    }
    absl::StrAppendFormat(&text, " for clusters from %d", block.first_cluster);
    if (block.same_block_as) {
      absl::StrAppendFormat(&text, ", the same block as in entry %d\n", *block.same_block_as);
      continue;
    }
    absl::StrAppendFormat(&text, ": %s\n",
                          Counted(block.nonzero, "refcount is not 0", "refcounts are not 0"));
    for (const RefcountRun& run : block.runs.items) absl::StrAppend(&text, RunText(run));
    absl::StrAppend(&text, LeftOut(block.runs.left_out, "    "));
  }
  return absl::StrCat(text, LeftOut(view.blocks.left_out, "  "));
}

std::string L2EntryText(const L2EntryView& entry, const Geometry& geometry) {
  std::string text(NameOf(entry.kind));
  if (entry.kind == L2EntryKind::kCompressed) {
    const CompressedRange range = DecodeCompressed(entry.entry, geometry.cluster_bits);
    absl::StrAppendFormat(&text, ": bytes 0x%x to 0x%x (%s)", range.offset_bytes,
                          range.end_bytes() - 1, Counted(range.length_bytes, "byte", "bytes"));
  } else if (entry.kind == L2EntryKind::kNormal || entry.kind == L2EntryKind::kZeroAllocated) {
    absl::StrAppendFormat(&text, " at 0x%x%s", EntryOffset(entry.entry),
                          geometry.data_file ? " of the data file" : "");
  }
  if (IsCopied(entry.entry)) absl::StrAppend(&text, ", COPIED");
  const uint64_t reserved =
      entry.kind == L2EntryKind::kCompressed ? 0 : entry.entry & kStandardL2ReservedMask;
  if (reserved != 0) absl::StrAppendFormat(&text, ", reserved bits 0x%x", reserved);
  if (geometry.extended_l2 && entry.bitmap_word != 0) {
    const SubclusterBitmap bitmap = DecodeSubclusterBitmap(entry.bitmap_word);
    absl::StrAppendFormat(&text, ", subclusters allocated 0x%08x, zero 0x%08x", bitmap.allocated,
                          bitmap.reads_as_zeros);
  }
  return text;
}

std::string L2Text(const L2View& view, const Geometry& geometry) {
  std::string text =
      absl::StrFormat("L1 slot %d at 0x%x: %s  %s, guest %s\n", view.l1_index,
                      view.l1_entry_offset.bytes, EntryBytes(view.l1_entry),
                      L1EntryText(view.l1_entry), Range(view.guest.bytes, view.guest_bytes));
  if (!view.note.empty()) absl::StrAppend(&text, "  ", view.note, "\n");
  if (!view.table_offset) return text;
  absl::StrAppendFormat(&text, "L2 table at 0x%x (%d): %s\n", view.table_offset->bytes,
                        view.table_offset->bytes,
                        Counted(geometry.l2_entries(), "entry", "entries"));
  for (const L2EntryView& entry : view.entries.items) {
    const std::string index =
        entry.count == 1 ? absl::StrCat(entry.l2_index)
                         : absl::StrCat(entry.l2_index, "-", entry.l2_index + entry.count - 1);
    absl::StrAppendFormat(&text, "  %-13s %s  guest 0x%-10x %s%s\n", index, EntryBytes(entry.entry),
                          entry.guest.bytes, L2EntryText(entry, geometry),
                          entry.count == 1 ? "" : absl::StrCat(", ", entry.count, " entries"));
  }
  return absl::StrCat(text, LeftOut(view.entries.left_out, "  "));
}

// --- Snapshots and bitmaps ---

std::string SnapshotText(const SnapshotEntry& entry, uint64_t number) {
  const absl::Time taken = absl::FromUnixSeconds(entry.date_seconds);
  std::string text = absl::StrFormat(
      "  snapshot %d: id %s, name %s, taken %s\n"
      "    entry at 0x%x, %s; L1 table at 0x%x, %s\n",
      number, Quoted(entry.id), Quoted(entry.name),
      absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", taken, absl::UTCTimeZone()), entry.offset_bytes,
      Counted(entry.length_bytes, "byte", "bytes"), entry.l1_table_offset,
      Counted(entry.l1_size, "entry", "entries"));
  absl::StrAppendFormat(&text, "    disk %s; VM state %s; guest clock %d ns; extra data %s",
                        entry.disk_size ? FormatBytes(*entry.disk_size) : "size not stored",
                        FormatBytes(entry.vm_state_bytes()), entry.vm_clock_nanoseconds,
                        Counted(entry.extra_data_bytes, "byte", "bytes"));
  if (entry.icount && *entry.icount != ~uint64_t{0}) {
    absl::StrAppend(&text, "; instruction count ", *entry.icount);
  }
  return absl::StrCat(text, "\n");
}

std::string SnapshotsText(const SnapshotsView& view) {
  if (view.count == 0) return "Snapshots: none\n";
  std::string text = absl::StrFormat("Snapshot table at 0x%x: %s\n", view.table_offset.bytes,
                                     Counted(view.count, "snapshot", "snapshots"));
  for (size_t i = 0; i < view.snapshots.items.size(); ++i) {
    absl::StrAppend(&text, SnapshotText(view.snapshots.items[i], i));
  }
  absl::StrAppend(&text, LeftOut(view.snapshots.left_out, "  "));
  if (!view.incomplete.empty()) {
    absl::StrAppend(&text, "  not all entries can be read: ", view.incomplete, "\n");
  }
  return text;
}

std::string BitmapFlags(uint32_t flags) {
  std::string text;
  if ((flags & kBitmapInUse) != 0) absl::StrAppend(&text, ", in use (not saved)");
  if ((flags & kBitmapAuto) != 0) absl::StrAppend(&text, ", auto");
  if ((flags & kBitmapExtraDataCompatible) != 0) absl::StrAppend(&text, ", extra data compatible");
  if ((flags & ~kKnownBitmapFlags) != 0) {
    absl::StrAppendFormat(&text, ", unknown flags 0x%x", flags & ~kKnownBitmapFlags);
  }
  return text;
}

std::string BitmapText(const BitmapView& view) {
  const BitmapEntry& entry = view.entry;
  const std::string granularity = entry.granularity_bits < 64
                                      ? FormatBytes(uint64_t{1} << entry.granularity_bits)
                                      : absl::StrCat("2^", entry.granularity_bits, " bytes");
  std::string text = absl::StrFormat(
      "  bitmap %s: type %d, granularity %s%s\n"
      "    entry at 0x%x, %s; table at 0x%x, %s\n",
      Quoted(entry.name), entry.type, granularity, BitmapFlags(entry.flags), entry.offset_bytes,
      Counted(entry.length_bytes, "byte", "bytes"), entry.table_offset,
      Counted(entry.table_entries, "entry", "entries"));
  if (entry.extra_data_bytes != 0) {
    absl::StrAppend(&text, "    extra data: ", Counted(entry.extra_data_bytes, "byte", "bytes"),
                    "\n");
  }
  if (!view.not_read.empty()) {
    return absl::StrCat(text, "    the table is not read: ", view.not_read, "\n");
  }
  absl::StrAppendFormat(&text,
                        "    in the table: %s with data, %d all ones, the others all zeros\n",
                        Counted(view.data_clusters, "cluster", "clusters"), view.all_ones);
  for (const BitmapTableEntryView& used : view.used.items) {
    const uint64_t offset = EntryOffset(used.entry);
    absl::StrAppendFormat(&text, "      entry %-5d %s  %s\n", used.index, EntryBytes(used.entry),
                          offset != 0             ? absl::StrFormat("data at 0x%x", offset)
                          : (used.entry & 1) != 0 ? "all ones"
                                                  : "reserved bits");
  }
  return absl::StrCat(text, LeftOut(view.used.left_out, "      "));
}

std::string BitmapsText(const BitmapsView& view) {
  if (!view.present) return "Bitmaps: none\n";
  std::string text =
      absl::StrFormat("Bitmap directory at 0x%x, %s: %s\n", view.extension.directory_offset,
                      Counted(view.extension.directory_size_bytes, "byte", "bytes"),
                      Counted(view.extension.nb_bitmaps, "bitmap", "bitmaps"));
  if (view.stale) {
    absl::StrAppend(&text, "  stale: the header does not say that bitmaps are consistent\n");
  }
  for (const BitmapView& bitmap : view.bitmaps.items) absl::StrAppend(&text, BitmapText(bitmap));
  absl::StrAppend(&text, LeftOut(view.bitmaps.left_out, "  "));
  if (!view.incomplete.empty()) absl::StrAppend(&text, "  ", view.incomplete, "\n");
  return text;
}

// --- Where is it, and whose is it? ---

std::string RefcountLine(const ClusterRefcounts& refcounts) {
  std::string text = absl::StrCat(
      "stored ", refcounts.stored ? absl::StrCat(*refcounts.stored) : "unknown", ", expected ",
      refcounts.expected ? absl::StrCat(*refcounts.expected) : "none (behind the end of the file)");
  if (refcounts.block) {
    absl::StrAppendFormat(&text, " (refcount block at 0x%x)", refcounts.block->bytes);
  }
  if (!refcounts.stored_note.empty()) absl::StrAppend(&text, " (", refcounts.stored_note, ")");
  return text;
}

std::string AnswerText(const GuestLocation& location) {
  const std::string name =
      location.file_name.empty() ? "" : absl::StrCat(" ", Quoted(location.file_name));
  const uint64_t place = location.host_offset.value_or(HostOffset{}).bytes;
  switch (location.reads_from) {
    case ReadsFrom::kCluster:
      return absl::StrFormat("the byte is at host offset 0x%x (%d)%s", place, place,
                             location.encrypted ? ", encrypted" : "");
    case ReadsFrom::kDataFile:
      return absl::StrFormat("the byte is at offset 0x%x (%d) of the external data file%s%s", place,
                             place, name, location.encrypted ? ", encrypted" : "");
    case ReadsFrom::kCompressed:
      return absl::StrFormat("in a compressed cluster: host bytes 0x%x to 0x%x (%s)",
                             location.compressed->offset_bytes,
                             location.compressed->end_bytes() - 1,
                             Counted(location.compressed->length_bytes, "byte", "bytes"));
    case ReadsFrom::kBackingFile:
      return absl::StrCat("reads from the backing file", name, " (as zeros behind its end)");
    case ReadsFrom::kZeros:
      return location.host_offset
                 ? absl::StrFormat("reads as zeros; host offset 0x%x is reserved for it", place)
                 : "reads as zeros";
    case ReadsFrom::kNowhere:
      return location.past_end
                 ? absl::StrFormat("behind the end of the virtual disk (%d bytes): no guest byte",
                                   location.virtual_size_bytes)
                 : "cannot be read";
  }
  return "";
}

std::string GuestText(const GuestLocation& location, const Geometry& geometry) {
  std::string text = absl::StrFormat("Guest offset 0x%x (%d, %s)\n", location.guest.bytes,
                                     location.guest.bytes, FormatBytes(location.guest.bytes));
  if (location.l1_entry_offset) {
    absl::StrAppendFormat(&text, "  L1 slot %d at 0x%x: %s  %s\n", location.l1_index,
                          location.l1_entry_offset->bytes, EntryBytes(location.l1_entry),
                          L1EntryText(location.l1_entry));
  } else {
    absl::StrAppendFormat(&text, "  L1 slot %d: does not exist\n", location.l1_index);
  }
  if (location.l2_entry) {
    absl::StrAppendFormat(&text, "  L2 entry %d at 0x%x: %s  %s\n", location.l2_index,
                          location.l2_entry->entry_offset.bytes,
                          EntryBytes(location.l2_entry->entry),
                          L2EntryText(*location.l2_entry, geometry));
  }
  if (location.subcluster) absl::StrAppend(&text, "  Subcluster ", *location.subcluster, "\n");
  absl::StrAppend(&text, "  Answer: ", AnswerText(location), "\n");
  for (const ClusterRefcounts& one : location.refcounts) {
    absl::StrAppendFormat(&text, "  Refcount of cluster %d: %s\n", one.cluster.value,
                          RefcountLine(one));
  }
  for (const std::string& note : location.notes) absl::StrAppend(&text, "  Note: ", note, "\n");
  return text;
}

std::string UsersText(const ClusterOwner& user) {
  std::vector<std::string> names;
  if (user.active) names.push_back("the active disk");
  if (user.snapshots.total() != 0) {
    names.push_back(absl::StrCat(user.snapshots.total() == 1 ? "snapshot " : "snapshots ",
                                 absl::StrJoin(user.snapshots.items, ", ")));
    if (user.snapshots.left_out != 0) {
      absl::StrAppend(&names.back(), " and ", user.snapshots.left_out, " more");
    }
  }
  return names.empty() ? "" : absl::StrCat(" of ", absl::StrJoin(names, " and "));
}

std::string OwnerText(const ClusterOwner& user) {
  const Owner& owner = user.owner;
  std::string text = absl::StrCat("    ", WordsOf(owner.structure), UsersText(user));
  if (owner.guest_offset) {
    absl::StrAppendFormat(&text, ", guest 0x%x, L1 slot %d", owner.guest_offset->bytes,
                          owner.l1_index.value_or(0));
  } else {
    absl::StrAppendFormat(&text, " at 0x%x", owner.host_offset.bytes);
  }
  if (owner.l2_index) absl::StrAppendFormat(&text, ", L2 entry %d", *owner.l2_index);
  if (owner.entry_offset) absl::StrAppendFormat(&text, " at 0x%x", owner.entry_offset->bytes);
  return absl::StrCat(text, "\n");
}

std::string ClusterText(const ClusterOwners& view) {
  std::string text =
      absl::StrFormat("Host cluster %d: bytes 0x%x to 0x%x%s\n", view.refcounts.cluster.value,
                      view.offset.bytes, view.offset.bytes + (view.cluster_bytes - 1),
                      view.in_file ? "" : ", behind the end of the file");
  absl::StrAppend(&text, "  Refcount: ", RefcountLine(view.refcounts), "\n");
  absl::StrAppend(&text, view.owners.total() == 0 ? "  Nobody uses it\n" : "  Used by\n");
  for (const ClusterOwner& owner : view.owners.items) absl::StrAppend(&text, OwnerText(owner));
  absl::StrAppend(&text, LeftOut(view.owners.left_out, "    "));
  for (const std::string& note : view.notes) {
    absl::StrAppend(&text, "  Note: ", Printable(note), "\n");
  }
  return text;
}

}  // namespace

std::string InspectText(const InspectResult& result) {
  const HeaderView& header = result.header;
  const Geometry geometry = header.geometry.value_or(Geometry{});
  std::string text =
      absl::StrFormat("%s: qcow2 version %d, a file of %s bytes", Printable(result.filename),
                      header.header.version, FormatCount(header.file_bytes));
  if (header.geometry) {
    const uint64_t clusters = DivideRoundingUp(header.file_bytes, geometry.cluster_size());
    absl::StrAppend(&text, " (", Counted(clusters, "cluster", "clusters"), ")");
  }
  absl::StrAppend(&text, "\n");
  if (result.show_header) absl::StrAppend(&text, HeaderText(header));
  AddSection(text, "Header extensions", result.extensions, ExtensionsText);
  AddSection(text, "L1 table", result.l1, L1Text);
  AddSection(text, "Refcounts", result.refcounts, RefcountsText);
  AddSection(text, "Snapshots", result.snapshots, SnapshotsText);
  AddSection(text, "Bitmaps", result.bitmaps, BitmapsText);
  AddSection(text, "L2 table", result.l2,
             [&](const L2View& view) { return L2Text(view, geometry); });
  AddSection(text, "Guest offset", result.guest,
             [&](const GuestLocation& view) { return GuestText(view, geometry); });
  AddSection(text, "Host cluster", result.cluster, ClusterText);
  if (!result.notes.empty()) absl::StrAppend(&text, "\n");
  for (const std::string& note : result.notes) {
    absl::StrAppend(&text, "Note: ", Printable(note), "\n");
  }
  return text;
}

}  // namespace qcow2check
