#include "checker/guest_counts.h"

namespace qcow2check {

GuestCounts::GuestCounts(const CheckState& state)
    : standard(state.file_clusters + kClustersBehindEnd),
      compressed(state.file_clusters + kClustersBehindEnd),
      copied(state.tracked_clusters),
      not_copied(state.tracked_clusters),
      collisions(state.tracked_clusters),
      past_end(state.tracked_clusters) {}

void AddStandard(CheckState& state, GuestCounts& counts) {
  state.expected->Absorb(counts.standard,
                         [&state](uint64_t cluster) { state.collisions->Insert(cluster); });
  state.copied->Absorb(counts.copied);
  state.not_copied->Absorb(counts.not_copied);
  state.collisions->Absorb(counts.collisions);
  state.past_end->Absorb(counts.past_end);
}

void AddCompressed(CheckState& state, GuestCounts& counts) {
  counts.compressed.ForEach([&state](uint64_t cluster) {
    if (state.expected->Get(cluster) != 0 && !state.compressed->Contains(cluster)) {
      state.collisions->Insert(cluster);
    }
    state.compressed->Insert(cluster);
  });
  state.expected->Absorb(counts.compressed, [](uint64_t) {});
}

}  // namespace qcow2check
