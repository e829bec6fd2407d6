// Flags: COPIED in L1 and L2 entries, and the header's dirty and corrupt bits.
#include <vector>

#include "common/byte_order.h"
#include "common/table_entry.h"
#include "repair/l1_slots.h"
#include "repair/metadata_doubt.h"
#include "repair/planners.h"

namespace qcow2check {
namespace {

constexpr uint64_t kIncompatibleFeaturesField = 72;

bool IsCountedTooOften(const CheckState& state, uint64_t entry) {
  const uint64_t cluster = EntryOffset(entry) >> state.geo().cluster_bits;
  return cluster < state.file_clusters && state.too_high->Contains(cluster);
}

}  // namespace

void PlanCopiedFlags(CheckState& state, PlanBuilder& plan) {
  const SoundPlaces places(state);
  if (ActiveL1IsInDoubt(state)) return;
  const bool may_lower =
      plan.options().free_orphans || (state.coverage.complete() && state.held_back.clusters == 0);
  for (const Finding& finding : state.findings.findings()) {
    if (finding.code != FindingCode::kCopiedWrong) continue;
    // The flag says what is true, and the refcount will, too.
    const bool fits_references = !finding.expected;
    if (fits_references && may_lower) continue;
    const uint64_t step =
        finding.structure == Structure::kL2Table ? state.geo().l2_entry_bytes() : 8;
    for (uint64_t at = 0; at < finding.length_bytes; at += step) {
      const uint64_t place = finding.host_offset->bytes + at;
      if (!places.MayChange(place)) continue;
      uint8_t bytes[8];
      if (!plan.image().ReadAt(HostOffset{place}, bytes).ok()) continue;
      const uint64_t entry = Load64(bytes);
      // It is made to fit a refcount that stays too high. One that is too low, or cannot be read,
      // is no reason to give up what is true.
      if (fits_references && !IsCountedTooOften(state, entry)) continue;
      plan.Write64(place, entry ^ kCopiedBit,
                   ReasonFor(finding, "set exactly if the refcount is 1"));
    }
  }
}

void PlanFeatureBits(CheckState& state, PlanBuilder& plan) {
  uint64_t corruptions = 0;
  const Finding* why = nullptr;
  for (const FindingCodeInfo& info : AllFindingCodes()) {
    if (info.tally == Tally::kCorruptions) corruptions += state.findings.CountOf(info.code);
    if (info.tally == Tally::kCheckErrors && state.findings.Has(info.code)) return;
  }
  for (const Finding& finding : state.findings.findings()) {
    if (finding.code == FindingCode::kDirtyBit || finding.code == FindingCode::kCorruptBit) {
      why = &finding;
    }
  }
  if (why == nullptr) return;
  if (corruptions != state.findings.CountOf(FindingCode::kCorruptBit)) {
    plan.Decline(why->code, why->host_offset, "it stays set until everything else is right");
    return;
  }
  uint8_t bytes[8];
  Store64(bytes, state.header.incompatible_features & ~uint64_t{kDirty | kCorrupt});
  plan.WriteLast(kIncompatibleFeaturesField, bytes,
                 ReasonFor(*why, "everything else was found right on the disk"));
}

}  // namespace qcow2check
