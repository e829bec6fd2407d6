#include "common/snapshot_entry.h"

#include "common/byte_order.h"
#include "common/checked_math.h"

namespace qcow2check {

SnapshotEntry DecodeSnapshotFixed(absl::Span<const uint8_t> fixed, uint64_t offset_bytes) {
  const uint8_t* p = fixed.data();
  SnapshotEntry entry;
  entry.offset_bytes = offset_bytes;
  entry.l1_table_offset = Load64(p);
  entry.l1_size = Load32(p + 8);
  entry.id_bytes = Load16(p + 12);
  entry.name_bytes = Load16(p + 14);
  entry.date_seconds = Load32(p + 16);
  entry.date_nanoseconds = Load32(p + 20);
  entry.vm_clock_nanoseconds = Load64(p + 24);
  entry.vm_state_size_32 = Load32(p + 32);
  entry.extra_data_bytes = Load32(p + 36);
  entry.length_bytes = RoundUp(
      kSnapshotFixedBytes + uint64_t{entry.extra_data_bytes} + entry.id_bytes + entry.name_bytes,
      8);
  return entry;
}

void DecodeSnapshotExtra(absl::Span<const uint8_t> extra, SnapshotEntry& entry) {
  if (extra.size() >= 8) entry.vm_state_size_64 = Load64(extra.data());
  if (extra.size() >= 16) entry.disk_size = Load64(extra.data() + 8);
  if (extra.size() >= 24) entry.icount = Load64(extra.data() + 16);
}

}  // namespace qcow2check
