// Repaired images are used as a guest and an administrator use them: the whole disk is written and
// read, a snapshot is taken, gone back to and deleted; and nothing is wrong then that was not
// before.
#ifndef QCOW2CHECK_TESTS_USED_IMAGE_H_
#define QCOW2CHECK_TESTS_USED_IMAGE_H_

#include <cstdint>
#include <vector>

#include "tests/repair_corpus.h"

namespace qcow2check::testing {

// Repairs `damaged`, which was `sound` once, uses it with QEMU's tools, and checks it again with
// both programs. What the repair held back must still be there then. False if the image is not one
// to try: it is not repaired, its disk is too large, encrypted or in another file. Needs qemu-img
// and qemu-io; some 300 ms.
bool RepairAndUse(const CorpusImage& sound, const std::vector<uint8_t>& damaged);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_USED_IMAGE_H_
