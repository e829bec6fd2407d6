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

SoundPlaces::SoundPlaces(const CheckState& state) : state_(state) {
  const int bits = state.geo().cluster_bits;
  const auto add = [this](uint64_t cluster, uint64_t users) {
    const auto [found, is_new] = users_.emplace(cluster, users);
    if (!is_new) found->second = kOverlap;
  };
  for (const L1Table& table : state.l1_tables) {
    // A table that reaches out of the file has a wrong length: what it covers is not all its own.
    if (state.IsOutside(table.offset_bytes, table.users.back().entries * 8)) continue;
    // No table has two users: one of them is not meant.
    if (table.users.size() > 1) continue;
    const uint64_t first = table.offset_bytes >> bits;
    const uint64_t end =
        std::min(table.offset_bytes + table.users.back().entries * 8, state.file.size_bytes());
    for (uint64_t cluster = first; cluster << bits < end; ++cluster) {
      uint64_t users = 0;
      for (const L1User& user : table.users) {
        const uint64_t user_end = table.offset_bytes + user.entries * 8;
        users += cluster << bits < user_end ? 1 : 0;
      }
      add(cluster, users);
    }
  }
  for (const L2Table& table : state.l2_tables) add(table.offset_bytes >> bits, table.weight);
}

bool SoundPlaces::MayChange(uint64_t place_bytes) const {
  const uint64_t cluster = place_bytes >> state_.geo().cluster_bits;
  const auto found = users_.find(cluster);
  return found != users_.end() && cluster < state_.file_clusters &&
         found->second == state_.expected->Get(cluster);
}

}  // namespace qcow2check
