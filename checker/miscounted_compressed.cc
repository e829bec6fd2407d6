#include "checker/miscounted_compressed.h"

namespace qcow2check {

void CountMiscountedCompressed(CheckState& state) {
  const bool lazy = state.header.Has(kDirty) && state.header.Has(kLazyRefcounts);
  state.mismatched->ForEach([&](uint64_t cluster) {
    if (cluster >= state.file_clusters || !state.compressed->Contains(cluster)) return;
    const bool too_high = state.too_high->Contains(cluster);
    if (too_high) ++state.compressed_too_high;
    const uint64_t expected = state.expected->Get(cluster);
    const bool too_low = !too_high && expected != 0 && expected <= state.geo().refcount_max();
    state.compressed_too_low |= too_low && !lazy;
  });
}

}  // namespace qcow2check
