// Compressed data that is counted less often, or more often, than entries lead to it.
#ifndef QCOW2CHECK_CHECKER_MISCOUNTED_COMPRESSED_H_
#define QCOW2CHECK_CHECKER_MISCOUNTED_COMPRESSED_H_

#include "checker/check_state.h"

namespace qcow2check {

// Several compressed clusters may be in one cluster, so two entries that lead there are no
// collision. Only the count tells that one is too many; a dirty image has not counted all.
//
// Needs the comparison; sets compressed_too_low and compressed_too_high.
void CountMiscountedCompressed(CheckState& state);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_MISCOUNTED_COMPRESSED_H_
