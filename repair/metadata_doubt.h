// Where guest data and metadata share a cluster, one of two pointers is wrong: is the metadata
// what it should be?
#ifndef QCOW2CHECK_REPAIR_METADATA_DOUBT_H_
#define QCOW2CHECK_REPAIR_METADATA_DOUBT_H_

#include <cstdint>

#include "absl/container/flat_hash_set.h"
#include "checker/check_state.h"
#include "common/image_file.h"

namespace qcow2check {

// Whether the bytes of a refcount block could be refcounts: small numbers, for clusters in the
// file. Zeros could be; so could counts that are all too low. `state` is a check of the image; the
// block is read only if many of its counts were found wrong.
bool HoldsRefcounts(const CheckState& state, const ImageFile& image, const RefcountBlock& block);

// Whether a cluster that nothing references was probably a refcount block.
bool WasRefcountBlock(const CheckState& state, const ImageFile& image, uint64_t offset_bytes);

// Whether the content of the metadata that `owner` names speaks against it, or against its
// reaching `place`. Bitmaps, which are worth less than guest data, always are in doubt.
bool IsInDoubt(const CheckState& state, const ImageFile& image, const Owner& owner,
               HostOffset place);

// Something is wrong with the snapshot table or with a snapshot's L1 table: what only snapshots
// refer to may be no table, and orphans may be what a snapshot needs.
bool SnapshotsAreInDoubt(const CheckState& state, const ImageFile& image);

// The same of each snapshot that a finding names, alone: those whose entry or L1 table is in doubt,
// or an entry before it, whose length says where its own is. Looks at each L1 table once.
absl::flat_hash_set<uint64_t> SnapshotsInDoubt(const CheckState& state, const ImageFile& image);

// No sound entry of the active L1 table leads to an L2 table, and some are more than one flipped
// bit away from one: what the header names is probably something else, and no place to write to.
bool ActiveL1IsInDoubt(const CheckState& state);

// It is in doubt, and not only for pointers that have the form of one.
bool ActiveL1IsGarbage(const CheckState& state);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_METADATA_DOUBT_H_
