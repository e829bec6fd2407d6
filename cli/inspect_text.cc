#include "cli/inspect_text.h"

#include <algorithm>
#include <array>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "cli/format_bytes.h"
#include "cli/header_meaning.h"
#include "cli/inspect_words.h"
#include "cli/printable.h"

namespace qcow2check {
namespace {

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
    absl::StrAppendFormat(&text, "            %s bit %d: %s\n", type, row.bit,
                          QuotedText(row.name));
  }
  return text;
}

std::string ExtensionDetail(const HeaderExtension& extension) {
  const std::string data(extension.data.begin(), extension.data.end());
  switch (extension.type) {
    case kExtensionBackingFormat:
    case kExtensionDataFile:
      return QuotedText(data);
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

std::string L2Text(const L2View& view, const Geometry& geometry) {
  std::string text = absl::StrFormat("L1 slot %d at 0x%x: %s  %s, guest %s\n", view.l1_index,
                                     view.l1_entry_offset.bytes, EntryBytes(view.l1_entry),
                                     L1EntryText(view.l1_entry),
                                     GuestRangeText(view.guest.bytes, view.guest_bytes));
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
      number, QuotedText(entry.id), QuotedText(entry.name),
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
      QuotedText(entry.name), entry.type, granularity, BitmapFlags(entry.flags), entry.offset_bytes,
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
