#include "repair/zero_entries.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/byte_order.h"
#include "common/table_entry.h"
#include "repair/l1_slots.h"
#include "repair/refcount_structures.h"

namespace qcow2check {
namespace {

constexpr char kWhy[] = "nothing in the file proves where it led: the range reads as zeros";
// In version 2 with a backing file, a lost table means a cluster of zeros for each of its entries.
constexpr uint64_t kMostZeroBytes = uint64_t{1} << 30;

PlanReason LossyReason(const Finding& finding, uint64_t place_bytes) {
  PlanReason reason = ReasonFor(finding, kWhy);
  reason.finding_offset = HostOffset{place_bytes};
  reason.action = RepairAction::kRewriteEntry;
  reason.safety = RepairSafety::kLossy;
  return reason;
}

}  // namespace

ZeroEntries::ZeroEntries(const CheckState& state, PlanBuilder& plan)
    : state_(state), plan_(plan), has_backing_(state.header.backing_file_offset != 0) {}

void ZeroEntries::Lose(const Finding& finding, GuestOffset guest, uint64_t length_bytes) {
  if (!finding.snapshot) plan_.AddLostRange(guest.bytes, length_bytes);
}

std::vector<uint8_t> ZeroEntries::ZeroEntryBytes() const {
  const Geometry& geometry = state_.geo();
  std::vector<uint8_t> bytes(geometry.l2_entry_bytes());
  if (geometry.extended_l2) {
    Store64(&bytes[8], uint64_t{0xffffffff} << 32);
  } else if (geometry.version >= 3) {
    Store64(bytes.data(), kZeroBit);
  }
  return bytes;
}

uint64_t ZeroEntries::WeightOfTableAt(uint64_t place_bytes, bool& active) const {
  const auto table =
      std::find_if(state_.l2_tables.begin(), state_.l2_tables.end(), [&](const L2Table& candidate) {
        return place_bytes - candidate.offset_bytes < state_.geo().cluster_size();
      });
  active = table != state_.l2_tables.end() && table->active_weight != 0;
  return table == state_.l2_tables.end() ? 1 : table->weight;
}

void ZeroEntries::AddL2(const Finding& finding, uint64_t place_bytes, GuestOffset guest) {
  const PlanReason reason = LossyReason(finding, place_bytes);
  Lose(finding, guest, state_.geo().cluster_size());
  if (!NeedsCluster()) {
    plan_.Write(place_bytes, ZeroEntryBytes(), reason);
    return;
  }
  bool active = false;
  const uint64_t weight = WeightOfTableAt(place_bytes, active);
  pending_.push_back({reason, place_bytes, false, weight, active && weight == 1});
}

void ZeroEntries::AddSubclusters(const Finding& finding, uint64_t place_bytes, GuestOffset guest,
                                 uint64_t bitmap_word) {
  const SubclusterBitmap bitmap = DecodeSubclusterBitmap(bitmap_word);
  const uint64_t zeros = bitmap.reads_as_zeros | bitmap.allocated;
  Lose(finding, guest, state_.geo().cluster_size());
  plan_.Write64(place_bytes + 8, zeros << 32, LossyReason(finding, place_bytes));
}

void ZeroEntries::AddL1(const Finding& finding, uint64_t place_bytes, GuestOffset guest) {
  const PlanReason reason = LossyReason(finding, place_bytes);
  Lose(finding, guest, state_.geo().l2_guest_bytes());
  if (!has_backing_) {
    plan_.Write64(place_bytes, 0, reason);
    return;
  }
  const L1Slot slot = L1SlotAt(state_, plan_, place_bytes);
  pending_.push_back({reason, place_bytes, true, std::max<uint64_t>(slot.users, 1),
                      slot.active && slot.users == 1});
}

// A table whose every entry reads as zeros; with `zero_clusters`, from the clusters behind it.
std::vector<uint8_t> ZeroEntries::ZeroTable(uint64_t first_cluster, bool copied) const {
  const Geometry& geometry = state_.geo();
  std::vector<uint8_t> table;
  table.reserve(geometry.cluster_size());
  std::vector<uint8_t> entry = ZeroEntryBytes();
  for (uint64_t i = 0; i < geometry.l2_entries(); ++i) {
    if (NeedsCluster()) {
      Store64(entry.data(),
              (first_cluster + i) << geometry.cluster_bits | (copied ? kCopiedBit : 0));
    }
    table.insert(table.end(), entry.begin(), entry.end());
  }
  return table;
}

void ZeroEntries::Commit() {
  if (pending_.empty()) return;
  const int bits = state_.geo().cluster_bits;
  RefcountStructures structures(state_, plan_);
  std::vector<std::pair<const Pending*, uint64_t>> placed;
  for (const Pending& pending : pending_) {
    const PlanReason& reason = pending.reason;
    const uint64_t zero_clusters = pending.is_l1 && NeedsCluster() ? state_.geo().l2_entries() : 0;
    if (zero_clusters > kMostZeroBytes >> bits) {
      plan_.Decline(reason.code, reason.finding_offset,
                    absl::StrCat("version 2 has no zero flag: ", zero_clusters << bits,
                                 " bytes of zeros would be needed to hide the backing file"));
      continue;
    }
    const std::optional<uint64_t> first =
        structures.space().Take(1 + zero_clusters, pending.refcount);
    if (!first) {
      plan_.Decline(reason.code, reason.finding_offset, "there is no free room for new clusters");
      continue;
    }
    if (pending.is_l1) plan_.Write(*first << bits, ZeroTable(*first + 1, pending.copied), reason);
    placed.push_back({&pending, *first << bits});
  }
  if (placed.empty() || !structures.Commit(placed.front().first->reason)) return;
  for (const auto& [pending, offset] : placed) {
    plan_.Write64(pending->place_bytes, offset | (pending->copied ? kCopiedBit : 0),
                  pending->reason);
  }
  plan_.Flush();
  pending_.clear();
}

}  // namespace qcow2check
