#include "repair/snapshot_table.h"

#include <algorithm>
#include <utility>

#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "repair/kept_page.h"
#include "repair/plain_text.h"

namespace qcow2check {
namespace {

constexpr uint64_t kExtraSizeField = 36;
constexpr uint64_t kNanosecondsPerSecond = 1'000'000'000;

}  // namespace

std::optional<SnapshotEntry> ReadPlausibleEntry(const ImageFile& file, uint64_t offset_bytes) {
  std::vector<uint8_t> fixed(kSnapshotFixedBytes + kSnapshotKnownExtraBytes);
  if (offset_bytes >= file.size_bytes() ||
      !file.ReadAt(HostOffset{offset_bytes}, absl::MakeSpan(fixed)).ok()) {
    return std::nullopt;
  }
  SnapshotEntry entry = DecodeSnapshotFixed(fixed, offset_bytes);
  if (entry.extra_data_bytes > kQemuMaxSnapshotExtraBytes || entry.id_bytes == 0 ||
      entry.date_nanoseconds >= kNanosecondsPerSecond ||
      offset_bytes + entry.length_bytes > RoundUp(file.size_bytes(), 8)) {
    return std::nullopt;
  }
  const uint64_t extra = std::min<uint64_t>(entry.extra_data_bytes, kSnapshotKnownExtraBytes);
  DecodeSnapshotExtra(absl::MakeSpan(fixed).subspan(kSnapshotFixedBytes, extra), entry);
  std::vector<uint8_t> text(uint64_t{entry.id_bytes} + entry.name_bytes);
  const uint64_t text_at = offset_bytes + kSnapshotFixedBytes + entry.extra_data_bytes;
  if (!file.ReadAt(HostOffset{text_at}, absl::MakeSpan(text)).ok() ||
      !IsPlainText(absl::MakeSpan(text).first(entry.id_bytes)) ||
      !IsPlainText(absl::MakeSpan(text).subspan(entry.id_bytes))) {
    return std::nullopt;
  }
  return entry;
}

std::vector<SnapshotEntry> ReadPlausibleEntries(const ImageFile& file, uint64_t offset_bytes,
                                                uint64_t count) {
  const KeptPage table(file);
  std::vector<SnapshotEntry> entries;
  uint64_t at = offset_bytes;
  while (entries.size() < std::min<uint64_t>(count, kQemuMaxSnapshots)) {
    std::optional<SnapshotEntry> entry = ReadPlausibleEntry(table, at);
    if (!entry) break;
    at += entry->length_bytes;
    entries.push_back(*std::move(entry));
  }
  return entries;
}

std::vector<uint8_t> EntryBytes(const ImageFile& file, const SnapshotEntry& entry) {
  std::vector<uint8_t> bytes(entry.length_bytes);
  if (!file.ReadAt(HostOffset{entry.offset_bytes}, absl::MakeSpan(bytes)).ok()) return {};
  return bytes;
}

std::vector<uint8_t> CompletedEntryBytes(const ImageFile& file, const SnapshotEntry& entry,
                                         const Geometry& geometry) {
  const std::vector<uint8_t> old = EntryBytes(file, entry);
  if (old.empty()) return {};
  const uint64_t unit = geometry.l2_guest_bytes();
  const uint64_t mapped = SaturatingMultiply(entry.l1_size, unit);
  const uint64_t vm_state = RoundUp(entry.vm_state_bytes(), unit);
  const uint64_t mapped_disk = mapped > vm_state ? mapped - vm_state : mapped;
  const uint64_t text_at = kSnapshotFixedBytes + entry.extra_data_bytes;
  const uint64_t text_bytes = uint64_t{entry.id_bytes} + entry.name_bytes;
  std::vector<uint8_t> bytes(kSnapshotFixedBytes + kSnapshotKnownExtraBytes);
  std::copy_n(old.begin(), kSnapshotFixedBytes, bytes.begin());
  Store32(&bytes[kExtraSizeField], kSnapshotKnownExtraBytes);
  Store64(&bytes[kSnapshotFixedBytes], entry.vm_state_bytes());
  Store64(&bytes[kSnapshotFixedBytes + 8], std::min(geometry.virtual_size_bytes, mapped_disk));
  Store64(&bytes[kSnapshotFixedBytes + 16], kSaturated);  // no instruction count
  bytes.insert(bytes.end(), old.begin() + static_cast<int64_t>(text_at),
               old.begin() + static_cast<int64_t>(text_at + text_bytes));
  bytes.resize(RoundUp(bytes.size(), 8));
  return bytes;
}

uint64_t L1EntriesNeeded(const SnapshotEntry& entry, const Geometry& geometry) {
  const uint64_t unit = geometry.l2_guest_bytes();
  const uint64_t disk = entry.disk_size.value_or(geometry.virtual_size_bytes);
  return SaturatingAdd(DivideRoundingUp(disk, unit),
                       DivideRoundingUp(entry.vm_state_bytes(), unit));
}

}  // namespace qcow2check
