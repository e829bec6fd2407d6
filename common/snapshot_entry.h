// One entry of the snapshot table (specification, "Snapshots").
#ifndef QCOW2CHECK_COMMON_SNAPSHOT_ENTRY_H_
#define QCOW2CHECK_COMMON_SNAPSHOT_ENTRY_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/types/span.h"

namespace qcow2check {

inline constexpr uint64_t kSnapshotFixedBytes = 40;
// The extra data we decode; more is unknown and preserved.
inline constexpr uint64_t kSnapshotKnownExtraBytes = 24;

struct SnapshotEntry {
  uint64_t offset_bytes = 0;  // of the entry in the file
  uint64_t length_bytes = 0;  // with id, name and padding
  uint64_t l1_table_offset = 0;
  uint32_t l1_size = 0;  // entries
  uint16_t id_bytes = 0;
  uint16_t name_bytes = 0;
  uint32_t date_seconds = 0;
  uint32_t date_nanoseconds = 0;
  uint64_t vm_clock_nanoseconds = 0;
  uint32_t vm_state_size_32 = 0;
  uint32_t extra_data_bytes = 0;
  std::optional<uint64_t> vm_state_size_64;
  std::optional<uint64_t> disk_size;
  std::optional<uint64_t> icount;
  std::string id;    // at most the first 255 bytes
  std::string name;  // at most the first 255 bytes

  uint64_t vm_state_bytes() const { return vm_state_size_64.value_or(vm_state_size_32); }
};

// Decodes the fixed part (`fixed`: kSnapshotFixedBytes bytes) of the entry at `offset_bytes` and
// works out its length. Id, name and extra data are for the caller to read and fill in.
SnapshotEntry DecodeSnapshotFixed(absl::Span<const uint8_t> fixed, uint64_t offset_bytes);

// Fills in what `extra` (the first extra_data_bytes, or fewer) holds.
void DecodeSnapshotExtra(absl::Span<const uint8_t> extra, SnapshotEntry& entry);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_SNAPSHOT_ENTRY_H_
