// Where guest data and metadata share a cluster, one of two pointers is wrong: is the metadata
// what it should be?
#ifndef QCOW2CHECK_REPAIR_METADATA_DOUBT_H_
#define QCOW2CHECK_REPAIR_METADATA_DOUBT_H_

#include <cstdint>

#include "checker/check_state.h"
#include "common/image_file.h"

namespace qcow2check {

// Whether the bytes of a refcount block could be refcounts: small numbers, for clusters in the
// file. Zeros could be; so could counts that are all too low.
bool HoldsRefcounts(const CheckState& state, const ImageFile& image, const RefcountBlock& block);

// Whether the content of the metadata that `owner` names speaks against it. Bitmaps, which are
// worth less than guest data, always are in doubt.
bool IsInDoubt(const CheckState& state, const ImageFile& image, const Owner& owner);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_METADATA_DOUBT_H_
