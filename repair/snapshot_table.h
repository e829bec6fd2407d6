// The snapshot table as the planner needs it: which entries are beyond doubt entries, and an entry
// as version 3 wants it.
//
// Works on any file and place, so that it can also be tried where a table may have been.
#ifndef QCOW2CHECK_REPAIR_SNAPSHOT_TABLE_H_
#define QCOW2CHECK_REPAIR_SNAPSHOT_TABLE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "common/geometry.h"
#include "common/image_file.h"
#include "common/snapshot_entry.h"

namespace qcow2check {

// The entry at `offset_bytes`, if what is there can be one: lengths that fit, a date, an id and a
// name that can be printed. Its L1 table is not judged.
std::optional<SnapshotEntry> ReadPlausibleEntry(const ImageFile& file, uint64_t offset_bytes);

// The entries from `offset_bytes` on up to the first that is none, at most `count`.
std::vector<SnapshotEntry> ReadPlausibleEntries(const ImageFile& file, uint64_t offset_bytes,
                                                uint64_t count);

// The bytes of an entry as they are; empty if they cannot be read.
std::vector<uint8_t> EntryBytes(const ImageFile& file, const SnapshotEntry& entry);

// The bytes of an entry with less than 16 bytes of extra data, with the 24 that QEMU writes today.
// The disk had the size it has now, or, if its L1 table is too small for that, as much as that
// maps. Empty if the entry cannot be read.
std::vector<uint8_t> CompletedEntryBytes(const ImageFile& file, const SnapshotEntry& entry,
                                         const Geometry& geometry);

// Entries that the L1 table of a snapshot needs for its disk and VM state.
uint64_t L1EntriesNeeded(const SnapshotEntry& entry, const Geometry& geometry);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_SNAPSHOT_TABLE_H_
