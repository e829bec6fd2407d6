#include "checker/guest_counts.h"

#include <utility>

namespace qcow2check {

GuestCounts::GuestCounts(const CheckState& state)
    : standard(state.file_clusters + kClustersBehindEnd, state.memory.get()),
      compressed(state.file_clusters + kClustersBehindEnd, state.memory.get()),
      copied(state.tracked_clusters, state.memory.get()),
      not_copied(state.tracked_clusters, state.memory.get()),
      collisions(state.tracked_clusters, state.memory.get()),
      past_end(state.tracked_clusters, state.memory.get()) {}

void TakeOver(CheckState& state, GuestCounts& counts) {
  std::swap(*state.expected, counts.standard);
  std::swap(*state.copied, counts.copied);
  std::swap(*state.not_copied, counts.not_copied);
  std::swap(*state.collisions, counts.collisions);
  std::swap(*state.past_end, counts.past_end);
}

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
