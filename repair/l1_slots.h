// The slots of L1 tables that lead to one L2 table, and what is there.
#ifndef QCOW2CHECK_REPAIR_L1_SLOTS_H_
#define QCOW2CHECK_REPAIR_L1_SLOTS_H_

#include <cstdint>
#include <functional>

#include "absl/container/flat_hash_map.h"
#include "checker/check_state.h"
#include "repair/plan_builder.h"

namespace qcow2check {

struct L1Slot {
  uint64_t place_bytes = 0;  // of the entry in the file
  uint64_t l1_index = 0;
  uint64_t entry = 0;
  bool active = false;  // the active disk uses this L1 table
  uint64_t users = 0;   // L1 tables of the disk and of snapshots that lie here and have the slot
};

// The slot at `place_bytes`; without users if no L1 table is there.
L1Slot L1SlotAt(const CheckState& state, const PlanBuilder& plan, uint64_t place_bytes);

// Slots number `l1_index` of every distinct L1 table, if they lead to `table_bytes`.
void ForEachL1SlotTo(const CheckState& state, const PlanBuilder& plan, uint64_t table_bytes,
                     uint64_t l1_index, const std::function<void(const L1Slot&)>& visit);

// Whether the walk found something else than an L2 table there.
bool IsLostTable(const CheckState& state, uint64_t table_bytes);

// Which entries may be changed: those in clusters that belong to one L1 or L2 table alone. Where
// two structures overlap, a change of one is damage to the other; and so it is where two pointers
// lead to one L1 table.
class SoundPlaces {
 public:
  explicit SoundPlaces(const CheckState& state);
  bool MayChange(uint64_t place_bytes) const;

 private:
  static constexpr uint64_t kOverlap = 0;

  const CheckState& state_;
  absl::flat_hash_map<uint64_t, uint64_t> users_;  // cluster -> references to the table there
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_L1_SLOTS_H_
