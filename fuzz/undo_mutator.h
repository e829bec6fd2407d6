// Undo files whose digests are right again after a change, so that what is behind the digests is
// tried, too: a digest keeps accidents out, not somebody who makes a file on purpose.
#ifndef QCOW2CHECK_FUZZ_UNDO_MUTATOR_H_
#define QCOW2CHECK_FUZZ_UNDO_MUTATOR_H_

#include "fuzz/input.h"

namespace qcow2check::testing {

// Digests of the records and the header; of the image, where it says so, and the finished mark, if
// it has its magic number, too.
void SealUndoLog(UndoInput& input, bool with_identity);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_FUZZ_UNDO_MUTATOR_H_
