// Repairs of images in memory, and whether they keep what every repair promises, whatever the
// damage was: nothing that was readable is lost, nothing that may be an only copy is freed or
// overwritten, what is left is listed, once is enough, and undo gives back every byte.
#ifndef QCOW2CHECK_TESTS_REPAIR_PROMISES_H_
#define QCOW2CHECK_TESTS_REPAIR_PROMISES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "checker/report.h"
#include "repair/repair.h"
#include "tests/guest_view.h"
#include "tests/repair_corpus.h"

namespace qcow2check::testing {

struct RepairedImage {
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> undo_log;  // empty if the repair did not ask for one
  RepairResult result;
};
RepairedImage Repair(const std::vector<uint8_t>& image, const RepairOptions& options = {});
// The bytes after the undo of the repair; a test failure if it cannot be undone.
std::vector<uint8_t> Undo(const RepairedImage& repaired);

// Of the data clusters of `sound` that are still somewhere in `before`: how many are in `after` in
// a cluster that is in use, so that no writer overwrites them.
struct KeptData {
  uint64_t before = 0;
  uint64_t after = 0;
};
KeptData DataKept(const CorpusImage& sound, const std::vector<uint8_t>& before,
                  const std::vector<uint8_t>& after);

struct RepairOutcome {
  std::string broken_promises;  // a line for each; empty if all were kept
  RepairedImage repaired;
  ViewChanges disk;  // the active disk
  ViewChanges snapshots;
  bool leaks_mode_was_refused = false;
};
// Repairs `damaged`, which was `sound` once, in both modes, and looks at every promise.
RepairOutcome TryRepair(const CorpusImage& sound, const std::vector<uint8_t>& damaged);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_REPAIR_PROMISES_H_
