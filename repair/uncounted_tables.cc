#include "repair/uncounted_tables.h"

#include "common/checked_math.h"
#include "common/snapshot_entry.h"

namespace qcow2check {

ExtentSet UncountedTables(const CheckState& state) {
  const uint64_t size = state.geo().cluster_size();
  ExtentSet tables;
  for (const L1Table& table : state.l1_tables) {
    const uint64_t end = SaturatingAdd(table.offset_bytes, table.users.back().entries * 8);
    if (end > RoundUp(state.file.size_bytes(), size)) tables.Add(table.offset_bytes, end);
  }
  const uint64_t snapshots = state.header.snapshots_offset;
  if (state.header.nb_snapshots != 0 && snapshots < state.file.size_bytes() &&
      state.expected->Get(snapshots / size) == 0) {
    tables.Add(snapshots, snapshots + 1);
  }
  // The lengths of the entry that cannot be read: with other bytes there it would be another one.
  if (!state.snapshots.empty() && state.snapshots.size() < state.header.nb_snapshots) {
    const SnapshotEntry& last = state.snapshots.back();
    const uint64_t next = last.offset_bytes + last.length_bytes;
    tables.Add(next, SaturatingAdd(next, kSnapshotFixedBytes));
  }
  return tables;
}

}  // namespace qcow2check
