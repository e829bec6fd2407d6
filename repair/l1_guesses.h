// Guesses about where the L1 table of a snapshot is, or that of the active disk where the two
// pointers lead to one table.
#ifndef QCOW2CHECK_REPAIR_L1_GUESSES_H_
#define QCOW2CHECK_REPAIR_L1_GUESSES_H_

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/header.h"
#include "common/snapshot_entry.h"
#include "repair/guess.h"

namespace qcow2check {

// That the snapshot's table is at `offset`; `what` says on what evidence.
Guess SnapshotL1Guess(const SnapshotEntry& entry, uint64_t offset, int rank,
                      absl::string_view what);

// No snapshot shares its table with the active disk: one of the two pointers is wrong, and
// refcounts do not say which. If the entry shares it, every guess about the snapshot's pointer gets
// one beside it about the header's, and both need that the active disk's COPIED flags are right
// then.
void AddGuessesAboutHeader(const Header& header, const SnapshotEntry& entry,
                           std::vector<Guess>& guesses);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_L1_GUESSES_H_
