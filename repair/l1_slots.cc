#include "repair/l1_slots.h"

#include <algorithm>

#include "common/byte_order.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

L1Slot SlotOf(const L1Table& table, const PlanBuilder& plan, uint64_t l1_index) {
  L1Slot slot = {.place_bytes = table.offset_bytes + l1_index * 8, .l1_index = l1_index};
  for (const L1User& user : table.users) slot.users += l1_index < user.entries ? 1 : 0;
  slot.active = l1_index < table.active_entries;
  uint8_t bytes[8];
  if (plan.image().ReadAt(HostOffset{slot.place_bytes}, bytes).ok()) slot.entry = Load64(bytes);
  return slot;
}

}  // namespace

L1Slot L1SlotAt(const CheckState& state, const PlanBuilder& plan, uint64_t place_bytes) {
  for (const L1Table& table : state.l1_tables) {
    const uint64_t end = table.offset_bytes + table.users.back().entries * 8;
    if (place_bytes < table.offset_bytes || place_bytes >= end) continue;
    return SlotOf(table, plan, (place_bytes - table.offset_bytes) / 8);
  }
  return {.place_bytes = place_bytes};
}

void ForEachL1SlotTo(const CheckState& state, const PlanBuilder& plan, uint64_t table_bytes,
                     uint64_t l1_index, const std::function<void(const L1Slot&)>& visit) {
  for (const L1Table& table : state.l1_tables) {
    if (l1_index >= table.users.back().entries) continue;
    const L1Slot slot = SlotOf(table, plan, l1_index);
    if (slot.users != 0 && EntryOffset(slot.entry) == table_bytes) visit(slot);
  }
}

bool IsLostTable(const CheckState& state, uint64_t table_bytes) {
  return std::any_of(state.l2_tables.begin(), state.l2_tables.end(), [&](const L2Table& table) {
    return table.offset_bytes == table_bytes && table.shape == L2Shape::kLost;
  });
}

}  // namespace qcow2check
