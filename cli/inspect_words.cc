#include "cli/inspect_words.h"

#include <array>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/format_bytes.h"
#include "cli/printable.h"
#include "common/byte_order.h"

namespace qcow2check {

std::string EntryBytes(uint64_t entry) {
  std::array<uint8_t, 8> bytes;
  Store64(bytes.data(), entry);
  return HexBytes(bytes);
}

std::string QuotedText(absl::string_view text) { return absl::StrCat("\"", Printable(text), "\""); }

std::string GuestRangeText(uint64_t begin, uint64_t length) {
  return absl::StrCat(begin == 0 ? "0" : FormatBytes(begin), " to ",
                      FormatBytes(SaturatingAdd(begin, length)));
}

std::string LeftOut(uint64_t left_out, absl::string_view indent) {
  if (left_out == 0) return "";
  return absl::StrCat(indent, "... and ", FormatCount(left_out), " more\n");
}

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

namespace {

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
      location.file_name.empty() ? "" : absl::StrCat(" ", QuotedText(location.file_name));
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

}  // namespace

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

}  // namespace qcow2check
