#include "cli/inspect_json.h"

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "cli/format_bytes.h"
#include "cli/header_meaning.h"

namespace qcow2check {
namespace {

using Json = nlohmann::ordered_json;

std::string Text(absl::string_view text) { return std::string(text); }
std::string Hex(uint64_t word) { return absl::StrFormat("0x%016x", word); }

std::string Dump(const Json& json) {
  return json.dump(4, ' ', true, Json::error_handler_t::replace);
}

// Puts a list under `key`, and how many of its items were left out.
template <typename Item, typename ToJson>
void PutList(Json& json, const char* key, const CappedList<Item>& list, ToJson to_json) {
  json[key] = Json::array();
  for (const Item& item : list.items) json[key].push_back(to_json(item));
  if (list.left_out != 0) json[std::string(key) + "-left-out"] = list.left_out;
}

template <typename View, typename ToJson>
void PutSection(Json& json, const char* key, const Section<View>& section, ToJson to_json) {
  if (!section) return;
  json[key] =
      section->ok() ? to_json(**section) : Json{{"error", Text(section->status().message())}};
}

Json HeaderJson(const HeaderView& view) {
  Json fields = Json::array();
  for (const HeaderFieldView& field : view.fields) {
    Json json = {{"name", field.name}, {"offset", field.offset}, {"bytes", HexBytes(field.bytes)}};
    json["value"] = field.value ? Json(*field.value) : Json(nullptr);
    json["meaning"] = MeaningOf(field, view);
    fields.push_back(std::move(json));
  }
  return {{"fields", fields}};
}

Json GeometryJson(const HeaderView& view) {
  const Geometry& geometry = *view.geometry;
  Json json = {{"cluster-size", geometry.cluster_size()},
               {"l2-bits", geometry.cluster_bits - (geometry.extended_l2 ? 4 : 3)},
               {"l2-entries", geometry.l2_entries()},
               {"l2-entry-bytes", geometry.l2_entry_bytes()},
               {"l2-guest-bytes", geometry.l2_guest_bytes()},
               {"l1-entries-needed", geometry.l1_entries_needed()},
               {"file-clusters", DivideRoundingUp(view.file_bytes, geometry.cluster_size())}};
  if (view.refcounts_readable) {
    json["refcount-bits"] = geometry.refcount_bits();
    json["refcount-block-entries"] = geometry.refcount_block_entries();
  }
  return json;
}

Json ExtensionJson(const HeaderExtension& extension) {
  Json json = {{"offset", extension.offset_bytes},
               {"type", absl::StrFormat("0x%08x", extension.type)},
               {"name", Text(ExtensionName(extension.type))},
               {"length", extension.length_bytes}};
  const std::string text(extension.data.begin(), extension.data.end());
  switch (extension.type) {
    case kExtensionBackingFormat:
    case kExtensionDataFile:
      json["text"] = text;
      break;
    case kExtensionFeatureNames:
      json["features"] = Json::array();
      for (const FeatureNameEntry& row : DecodeFeatureNames(extension.data)) {
        json["features"].push_back({{"type", row.type}, {"bit", row.bit}, {"name", row.name}});
      }
      break;
    case kExtensionBitmaps:
      if (const auto bitmaps = DecodeBitmapsExtension(extension.data)) {
        json["bitmaps"] = bitmaps->nb_bitmaps;
        json["directory-offset"] = bitmaps->directory_offset;
        json["directory-size"] = bitmaps->directory_size_bytes;
      }
      break;
    case kExtensionCrypto:
      if (const auto crypto = DecodeCryptoExtension(extension.data)) {
        json["luks-offset"] = crypto->offset;
        json["luks-length"] = crypto->length_bytes;
      }
      break;
    default:
      json["data"] = absl::BytesToHexString(text.substr(0, 256));
  }
  return json;
}

Json ExtensionsJson(const ExtensionsView& view) {
  Json json;
  PutList(json, "list", view.extensions, ExtensionJson);
  json["end"] = view.end_bytes;
  json["end-marker"] = view.has_end_marker;
  if (view.overflow) json["too-large"] = ExtensionJson(*view.overflow);
  return json;
}

Json L1Json(const L1View& view) {
  Json json = {{"offset", view.offset.bytes},
               {"entries", view.entries},
               {"entries-in-file", view.entries_in_file}};
  PutList(json, "used", view.used, [](const L1EntryView& entry) {
    return Json{
        {"l1-index", entry.l1_index},       {"entry-offset", entry.entry_offset.bytes},
        {"entry", Hex(entry.entry)},        {"l2-table-offset", EntryOffset(entry.entry)},
        {"copied", IsCopied(entry.entry)},  {"reserved-bits", Hex(entry.entry & kL1ReservedMask)},
        {"guest-offset", entry.guest.bytes}};
  });
  return json;
}

Json BlockJson(const RefcountBlockView& block) {
  Json json = {{"table-index", block.table_index},
               {"entry-offset", block.entry_offset.bytes},
               {"entry", Hex(block.entry)},
               {"block-offset", block.offset.bytes},
               {"first-cluster", block.first_cluster}};
  if (!block.not_read.empty()) {
    json["error"] = block.not_read;
    return json;
  }
  if (block.same_block_as) {
    json["same-block-as"] = *block.same_block_as;
    return json;
  }
  json["nonzero"] = block.nonzero;
  PutList(json, "refcounts", block.runs, [](const RefcountRun& run) {
    return Json{{"first-cluster", run.first_cluster},
                {"clusters", run.clusters},
                {"refcount", run.refcount}};
  });
  return json;
}

Json RefcountsJson(const RefcountsView& view) {
  Json json = {{"offset", view.table_offset.bytes},
               {"entries", view.table_entries},
               {"entries-in-file", view.table_entries_in_file},
               {"refcount-bits", view.refcount_bits},
               {"block-entries", view.block_entries}};
  PutList(json, "blocks", view.blocks, BlockJson);
  return json;
}

Json SnapshotJson(const SnapshotEntry& entry) {
  Json json = {{"entry-offset", entry.offset_bytes},
               {"entry-length", entry.length_bytes},
               {"id", entry.id},
               {"name", entry.name},
               {"l1-offset", entry.l1_table_offset},
               {"l1-entries", entry.l1_size},
               {"date-seconds", entry.date_seconds},
               {"date-nanoseconds", entry.date_nanoseconds},
               {"vm-clock-nanoseconds", entry.vm_clock_nanoseconds},
               {"vm-state-size", entry.vm_state_bytes()},
               {"extra-data-size", entry.extra_data_bytes}};
  if (entry.disk_size) json["virtual-size"] = *entry.disk_size;
  if (entry.icount) json["icount"] = *entry.icount;
  return json;
}

Json SnapshotsJson(const SnapshotsView& view) {
  Json json = {{"offset", view.table_offset.bytes}, {"count", view.count}};
  PutList(json, "list", view.snapshots, SnapshotJson);
  if (!view.incomplete.empty()) json["incomplete"] = view.incomplete;
  return json;
}

Json BitmapJson(const BitmapView& view) {
  const BitmapEntry& entry = view.entry;
  Json json = {{"entry-offset", entry.offset_bytes},
               {"entry-length", entry.length_bytes},
               {"name", entry.name},
               {"type", entry.type},
               {"flags", entry.flags},
               {"in-use", (entry.flags & kBitmapInUse) != 0},
               {"auto", (entry.flags & kBitmapAuto) != 0},
               {"granularity-bits", entry.granularity_bits},
               {"extra-data-size", entry.extra_data_bytes},
               {"table-offset", entry.table_offset},
               {"table-entries", entry.table_entries}};
  if (!view.not_read.empty()) {
    json["error"] = view.not_read;
    return json;
  }
  json["data-clusters"] = view.data_clusters;
  json["all-ones"] = view.all_ones;
  PutList(json, "used", view.used, [](const BitmapTableEntryView& used) {
    return Json{{"index", used.index},
                {"entry", Hex(used.entry)},
                {"data-offset", EntryOffset(used.entry)}};
  });
  return json;
}

Json BitmapsJson(const BitmapsView& view) {
  Json json = {{"present", view.present}};
  if (!view.present) return json;
  json["stale"] = view.stale;
  json["count"] = view.extension.nb_bitmaps;
  json["directory-offset"] = view.extension.directory_offset;
  json["directory-size"] = view.extension.directory_size_bytes;
  PutList(json, "list", view.bitmaps, BitmapJson);
  if (!view.incomplete.empty()) json["incomplete"] = view.incomplete;
  return json;
}

Json RangeJson(const CompressedRange& range) {
  return {{"offset", range.offset_bytes}, {"length", range.length_bytes}};
}

Json L2EntryJson(const L2EntryView& entry, const Geometry& geometry) {
  Json json = {{"l2-index", entry.l2_index},
               {"count", entry.count},
               {"entry-offset", entry.entry_offset.bytes},
               {"guest-offset", entry.guest.bytes},
               {"entry", Hex(entry.entry)},
               {"kind", Text(NameOf(entry.kind))},
               {"copied", IsCopied(entry.entry)}};
  if (entry.kind == L2EntryKind::kCompressed) {
    json["compressed"] = RangeJson(DecodeCompressed(entry.entry, geometry.cluster_bits));
  } else {
    json["zero"] = !geometry.extended_l2 && (entry.entry & kZeroBit) != 0;
    json["reserved-bits"] = Hex(entry.entry & kStandardL2ReservedMask);
  }
  if (entry.kind == L2EntryKind::kNormal || entry.kind == L2EntryKind::kZeroAllocated) {
    json[geometry.data_file ? "data-file-offset" : "host-offset"] = EntryOffset(entry.entry);
  }
  if (geometry.extended_l2) {
    const SubclusterBitmap bitmap = DecodeSubclusterBitmap(entry.bitmap_word);
    json["subclusters-allocated"] = absl::StrFormat("0x%08x", bitmap.allocated);
    json["subclusters-zero"] = absl::StrFormat("0x%08x", bitmap.reads_as_zeros);
  }
  return json;
}

Json L2Json(const L2View& view, const Geometry& geometry) {
  Json json = {{"l1-index", view.l1_index},
               {"l1-entry-offset", view.l1_entry_offset.bytes},
               {"l1-entry", Hex(view.l1_entry)},
               {"guest-offset", view.guest.bytes},
               {"guest-length", view.guest_bytes}};
  json["table-offset"] = view.table_offset ? Json(view.table_offset->bytes) : Json(nullptr);
  if (!view.note.empty()) json["note"] = view.note;
  PutList(json, "entries", view.entries,
          [&](const L2EntryView& entry) { return L2EntryJson(entry, geometry); });
  return json;
}

Json ClusterRefcountsJson(const ClusterRefcounts& refcounts) {
  Json json = {{"cluster", refcounts.cluster.value}};
  json["stored"] = refcounts.stored ? Json(*refcounts.stored) : Json(nullptr);
  json["expected"] = refcounts.expected ? Json(*refcounts.expected) : Json(nullptr);
  if (refcounts.block) json["block-offset"] = refcounts.block->bytes;
  if (!refcounts.stored_note.empty()) json["note"] = refcounts.stored_note;
  return json;
}

Json GuestJson(const GuestLocation& location, const Geometry& geometry) {
  Json json = {{"guest-offset", location.guest.bytes},
               {"past-end", location.past_end},
               {"l1-index", location.l1_index},
               {"l2-index", location.l2_index}};
  if (location.l1_entry_offset) {
    json["l1-entry-offset"] = location.l1_entry_offset->bytes;
    json["l1-entry"] = Hex(location.l1_entry);
  }
  if (location.l2_table) json["l2-table-offset"] = location.l2_table->bytes;
  if (location.l2_entry) json["l2-entry"] = L2EntryJson(*location.l2_entry, geometry);
  if (location.subcluster) json["subcluster"] = *location.subcluster;
  json["reads-from"] = Text(NameOf(location.reads_from));
  if (!location.file_name.empty()) json["file"] = location.file_name;
  if (location.host_offset) {
    json[geometry.data_file ? "data-file-offset" : "host-offset"] = location.host_offset->bytes;
  }
  if (location.compressed) json["compressed"] = RangeJson(*location.compressed);
  json["encrypted"] = location.encrypted;
  json["refcounts"] = Json::array();
  for (const ClusterRefcounts& one : location.refcounts) {
    json["refcounts"].push_back(ClusterRefcountsJson(one));
  }
  json["notes"] = location.notes;
  return json;
}

Json OwnerJson(const ClusterOwner& user) {
  const Owner& owner = user.owner;
  Json json = {{"structure", Text(NameOf(owner.structure))},
               {"host-offset", owner.host_offset.bytes}};
  if (owner.entry_offset) json["entry-offset"] = owner.entry_offset->bytes;
  if (owner.guest_offset) json["guest-offset"] = owner.guest_offset->bytes;
  if (owner.l1_index) json["l1-index"] = *owner.l1_index;
  if (owner.l2_index) json["l2-index"] = *owner.l2_index;
  if (user.active || user.snapshots.total() != 0) {
    json["active"] = user.active;
    PutList(json, "snapshots", user.snapshots, [](uint64_t snapshot) { return Json(snapshot); });
  }
  return json;
}

Json ClusterJson(const ClusterOwners& view) {
  Json json = ClusterRefcountsJson(view.refcounts);
  json["host-offset"] = view.offset.bytes;
  json["length"] = view.cluster_bytes;
  json["in-file"] = view.in_file;
  PutList(json, "owners", view.owners, OwnerJson);
  json["notes"] = view.notes;
  return json;
}

}  // namespace

std::string InspectJson(const InspectResult& result) {
  const HeaderView& header = result.header;
  const Geometry geometry = header.geometry.value_or(Geometry{});
  Json json = {
      {"filename", result.filename}, {"format", "qcow2"}, {"file-size", header.file_bytes}};
  if (header.geometry) json["geometry"] = GeometryJson(header);
  if (result.show_header) json["header"] = HeaderJson(header);
  PutSection(json, "extensions", result.extensions, ExtensionsJson);
  PutSection(json, "l1", result.l1, L1Json);
  PutSection(json, "refcounts", result.refcounts, RefcountsJson);
  PutSection(json, "snapshots", result.snapshots, SnapshotsJson);
  PutSection(json, "bitmaps", result.bitmaps, BitmapsJson);
  PutSection(json, "l2", result.l2, [&](const L2View& view) { return L2Json(view, geometry); });
  PutSection(json, "guest", result.guest,
             [&](const GuestLocation& view) { return GuestJson(view, geometry); });
  PutSection(json, "cluster", result.cluster, ClusterJson);
  json["notes"] = result.notes;
  return Dump(json);
}

std::string InspectErrorJson(const std::string& filename, absl::string_view error) {
  Json json;
  json["filename"] = filename;
  json["error"] = Text(error);
  return Dump(json);
}

}  // namespace qcow2check
