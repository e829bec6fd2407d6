// The snapshot pass: the snapshot table and what its entries say (specification, "Snapshots").
//
// Needs the geometry. Makes the list of snapshots, and claims the table. Work is bounded by the
// bytes the file has for the table and by QEMU's limit of 65,536 snapshots.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "checker/metadata_window.h"
#include "common/limits.h"
#include "common/quoted.h"

namespace qcow2check {
namespace {

constexpr uint64_t kKeptTextBytes = 255;

void AddToTable(CheckState& state, FindingCode code, uint64_t offset, uint64_t length,
                std::string detail, std::optional<uint64_t> snapshot = std::nullopt) {
  state.findings.Add({.code = code,
                      .structure = Structure::kSnapshotTable,
                      .host_offset = HostOffset{offset},
                      .length_bytes = length,
                      .snapshot = snapshot,
                      .detail = std::move(detail)});
}

std::string ReadText(MetadataWindow& window, uint64_t offset, uint64_t length) {
  const std::vector<uint8_t> bytes = window.Read(offset, std::min(length, kKeptTextBytes));
  return std::string(bytes.begin(), bytes.end());
}

SnapshotEntry ReadEntry(MetadataWindow& window, uint64_t offset) {
  const std::vector<uint8_t> fixed =
      window.Read(offset, kSnapshotFixedBytes + kSnapshotKnownExtraBytes);
  SnapshotEntry entry = DecodeSnapshotFixed(fixed, offset);
  const uint64_t extra = std::min<uint64_t>(entry.extra_data_bytes, kSnapshotKnownExtraBytes);
  DecodeSnapshotExtra(absl::MakeSpan(fixed).subspan(kSnapshotFixedBytes, extra), entry);
  const uint64_t id_at = offset + kSnapshotFixedBytes + entry.extra_data_bytes;
  entry.id = ReadText(window, id_at, entry.id_bytes);
  entry.name = ReadText(window, id_at + entry.id_bytes, entry.name_bytes);
  return entry;
}

// A snapshot has an id and an L1 table. Where there are only zeros, it was lost.
bool IsZero(const SnapshotEntry& entry) {
  return entry.l1_table_offset == 0 && entry.l1_size == 0 && entry.id_bytes == 0;
}

void CheckEntry(CheckState& state, const SnapshotEntry& entry, uint64_t index) {
  if (state.geo().version >= 3 && IsZero(entry) && entry.extra_data_bytes == 0) {
    // One finding for any number of them.
    AddToTable(state, FindingCode::kSnapshotEntryIncomplete, entry.offset_bytes, entry.length_bytes,
               "");
  } else if (state.geo().version >= 3 && entry.extra_data_bytes < 16) {
    AddToTable(
        state, FindingCode::kSnapshotEntryIncomplete, entry.offset_bytes, entry.length_bytes,
        absl::StrCat("snapshot ", index, " has ", entry.extra_data_bytes, " bytes of extra data"),
        index);
  }
  if (entry.extra_data_bytes > kQemuMaxSnapshotExtraBytes) {
    AddToTable(
        state, FindingCode::kSnapshotExtraTooLarge, entry.offset_bytes, entry.length_bytes,
        absl::StrCat("snapshot ", index, " has ", entry.extra_data_bytes, " bytes of extra data"),
        index);
  }
  // Old entries do not say how large the disk was; it may have been grown since.
  const uint64_t disk_bytes = entry.disk_size.value_or(0);
  // VM state starts with an L1 entry of its own. A sum that saturates fits no L1 table.
  const uint64_t disk_end =
      entry.vm_state_bytes() == 0 ? disk_bytes : RoundUp(disk_bytes, state.geo().l2_guest_bytes());
  const uint64_t mapped = SaturatingMultiply(entry.l1_size, state.geo().l2_guest_bytes());
  if (mapped < SaturatingAdd(disk_end, entry.vm_state_bytes())) {
    AddToTable(state, FindingCode::kSnapshotSizeMismatch, entry.offset_bytes, entry.length_bytes,
               absl::StrFormat("snapshot %d: %d L1 entries for a disk of %d bytes and %d bytes "
                               "of VM state",
                               index, entry.l1_size, disk_bytes, entry.vm_state_bytes()),
               index);
  }
}

void CheckDuplicates(CheckState& state) {
  absl::flat_hash_map<std::string, uint64_t> ids, names;
  for (uint64_t i = 0; i < state.snapshots.size(); ++i) {
    const SnapshotEntry& entry = state.snapshots[i];
    if (IsZero(entry)) continue;
    const auto [id, id_is_new] = ids.emplace(absl::StrCat(entry.id_bytes, ":", entry.id), i);
    const auto [name, name_is_new] =
        names.emplace(absl::StrCat(entry.name_bytes, ":", entry.name), i);
    if (id_is_new && (name_is_new || entry.name.empty())) continue;
    AddToTable(state, FindingCode::kSnapshotDuplicate, entry.offset_bytes, entry.length_bytes,
               absl::StrFormat("snapshots %d and %d both have the %s %s",
                               id_is_new ? name->second : id->second, i, id_is_new ? "name" : "id",
                               Quoted(id_is_new ? entry.name : entry.id)),
               i);
  }
}

// All that such snapshots refer to seems to be unreferenced.
void ReportZeroEntries(CheckState& state) {
  uint64_t zero_entries = 0, first = 0;
  for (uint64_t i = state.snapshots.size(); i-- > 0;) {
    if (!IsZero(state.snapshots[i])) continue;
    ++zero_entries;
    first = i;
  }
  if (zero_entries == 0) return;
  AddToTable(state, FindingCode::kSnapshotTableInvalid, state.snapshots[first].offset_bytes, 0,
             absl::StrFormat("%d of %d entries hold only zeros, the first is number %d",
                             zero_entries, state.snapshots.size(), first));
}

}  // namespace

void CheckSnapshotTable(CheckState& state) {
  const Header& header = state.header;
  const uint64_t begin = header.snapshots_offset;
  const uint64_t size = state.file.size_bytes();
  if (header.nb_snapshots == 0) {
    constexpr uint64_t kMostBytes = uint64_t{1} << 63;
    if (IsAligned(begin, state.geo().cluster_size()) && begin < kMostBytes) return;
    AddToTable(
        state, FindingCode::kSnapshotTableInvalid, begin, 0,
        absl::StrFormat("there are no snapshots, but QEMU refuses their table at 0x%x", begin));
    return;
  }
  if (begin < state.geo().cluster_size() || !IsAligned(begin, state.geo().cluster_size()) ||
      begin >= size) {
    AddToTable(state, FindingCode::kSnapshotTableInvalid, begin, 0,
               absl::StrFormat("%d snapshots at 0x%x", header.nb_snapshots, begin));
    state.Skip("all snapshots", "the snapshot table cannot be found");
    return;
  }
  uint64_t wanted = header.nb_snapshots;
  if (wanted > kQemuMaxSnapshots) {
    AddToTable(state, FindingCode::kSnapshotTooMany, begin, 0, absl::StrCat(wanted, " snapshots"));
    state.Skip("snapshots behind the first 65,536", "no image has that many");
    wanted = kQemuMaxSnapshots;
  }
  MetadataWindow window(state, Structure::kSnapshotTable);
  uint64_t at = begin;
  for (uint64_t i = 0; i < wanted; ++i) {
    if (SaturatingAdd(at, kSnapshotFixedBytes) > size) break;
    SnapshotEntry entry = ReadEntry(window, at);
    const uint64_t text_end = SaturatingAdd(at, entry.length_bytes);
    if (RoundUp(size, 8) < text_end ||
        SaturatingAdd(at - begin, entry.length_bytes) > kQemuMaxSnapshotTableBytes) {
      break;
    }
    CheckEntry(state, entry, i);
    if (entry.vm_state_bytes() != 0) {
      const uint64_t vm_state_begin = RoundUp(header.size, state.geo().l2_guest_bytes());
      state.vm_state_end_bytes =
          std::max(state.vm_state_end_bytes, SaturatingAdd(vm_state_begin, entry.vm_state_bytes()));
    }
    at = text_end;
    state.snapshots.push_back(std::move(entry));
  }
  ReportZeroEntries(state);
  if (state.snapshots.size() < wanted) {
    AddToTable(
        state, FindingCode::kSnapshotTableInvalid, at, 0,
        absl::StrCat("only ", state.snapshots.size(), " of ", wanted, " entries can be read"));
    state.Skip(absl::StrCat("snapshots from ", state.snapshots.size(), " on"),
               "their entries cannot be read");
  }
  CheckDuplicates(state);
  state.coverage.snapshots = state.snapshots.size();
  state.Claim({Structure::kSnapshotTable, begin, at - begin, std::nullopt}, 1);
}

}  // namespace qcow2check
