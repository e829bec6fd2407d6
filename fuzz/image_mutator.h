// Changes to images that know the format, so that inputs get deep: pointers that lead elsewhere,
// tables written over, entries made, and refcounts that are right again afterwards.
#ifndef QCOW2CHECK_FUZZ_IMAGE_MUTATOR_H_
#define QCOW2CHECK_FUZZ_IMAGE_MUTATOR_H_

#include <cstdint>
#include <vector>

#include "fuzz/input.h"

namespace qcow2check::testing {

// One to four changes to the image that `input` is; text stays text. Empty if the input is no image
// or the result would be longer than `max_bytes`.
std::vector<uint8_t> MutateImage(Input input, uint64_t max_bytes, uint64_t seed);

// Stores the refcounts and COPIED flags that a check says are right, as far as there is room for
// them. Costs a check.
void MakeRefcountsRight(SparseFile& image);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_FUZZ_IMAGE_MUTATOR_H_
