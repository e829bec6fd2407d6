// What must be true of every input, whatever is in it: the fuzzers try these on what they make up,
// and an ordinary test on corpora/regressions/.
//
// Each function returns a line for every property that is broken, or "". What is worse (a crash, a
// read behind a buffer, a failed QCOW2CHECK_CHECK) ends the program.
#ifndef QCOW2CHECK_FUZZ_PROPERTIES_H_
#define QCOW2CHECK_FUZZ_PROPERTIES_H_

#include <string>

#include "fuzz/input.h"
#include "tests/sparse_file.h"

namespace qcow2check::testing {

// The records of the format, read from the start of the input: extensions are inside their area,
// and what is encoded decodes to the same.
std::string BrokenByRecords(Input input);

// A check of the image: the work is bounded by what is stored; threads, the size of parts, the cap
// on findings and holes make no difference; the reference checker agrees where it can; the outputs
// are JSON in UTF-8 and text without control characters; nothing is written.
std::string BrokenByCheck(const SparseFile& image);

// A repair of the image: the promises of tests/plain_promises.h; what the check found nothing wrong
// with reads as before; `leaks` changes nothing for the guest; cut off somewhere, the repair can be
// taken back and started again.
std::string BrokenByRepair(const SparseFile& image);

// An undo file that may have been made to harm: an image that it does not belong to is not written,
// and one that it does belong to is given back as the file says, once.
std::string BrokenByUndo(const UndoInput& input);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_FUZZ_PROPERTIES_H_
