// Refcount blocks and tables that the image once used and that nothing references any more.
//
// They look much like L2 tables, or like data, and tell themselves apart by what they say: how
// often the clusters of this very image are referenced, their own clusters included.
#ifndef QCOW2CHECK_CHECKER_OLD_REFCOUNTS_H_
#define QCOW2CHECK_CHECKER_OLD_REFCOUNTS_H_

#include "absl/types/span.h"
#include "checker/check_state.h"

namespace qcow2check {

enum class OldRefcounts {
  kNo,
  kAllOnes,  // it fits, but so would the block of any other image that is full
  kYes,
};

// Whether the unreferenced cluster at `block.offset_bytes` holds the refcounts of the range of
// clusters number `block.table_index`, as they were before the refcount structures of now were
// made. Needs the orphans of `state`. Cost: one cluster is read.
OldRefcounts IsOldRefcountBlock(const CheckState& state, const RefcountBlock& block);

// Whether an unreferenced cluster with this content is the start of a refcount table, each entry of
// which leads to an old refcount block. Cost: one cluster is read for each entry, as long as they
// do.
bool IsOldRefcountTable(const CheckState& state, absl::Span<const uint8_t> cluster);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_OLD_REFCOUNTS_H_
