// Repairs of images in memory, and what every repair promises whatever the image is, so that
// nothing need be known of what it was before it was damaged: it comes to its end, does what the
// dry run said, leaves what the plan said, once is enough, and undo gives back every byte. What
// concerns the data is in tests/repair_promises.h.
#ifndef QCOW2CHECK_TESTS_PLAIN_PROMISES_H_
#define QCOW2CHECK_TESTS_PLAIN_PROMISES_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "checker/check.h"
#include "repair/repair.h"
#include "tests/sparse_file.h"

namespace qcow2check::testing {

// More than nearly all damaged images have of one code. Where there are more, the rest counts as
// listed like those that are.
inline constexpr uint64_t kMostListed = 5000;
inline CheckOptions ListMost() { return {.max_findings = kMostListed}; }

struct RepairRun {
  RepairOptions options;
  SparseFile before;
  SparseFile after;
  SparseFile undo_log;  // empty if the repair did not ask for one
  RepairResult result;
};
RepairRun RunRepair(const SparseFile& image, const RepairOptions& options = {});

// What the undo of the repair leaves; `why` says why it could not be undone.
SparseFile UndoRun(const RepairRun& run, std::string& why);

// What a second repair may do. What the first one gave up was evidence, too: of images that make
// hardly any sense the second may find out more without it. In the end there is nothing to do.
enum class SecondRepair { kWritesNothing, kMayGoOnAfterLosses };

// A line for each promise that the repair did not keep.
std::string BrokenPlainPromises(const RepairRun& run, SecondRepair second);

// "promise: how\n"
void AddBroken(absl::string_view promise, absl::string_view how, std::string& broken);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_PLAIN_PROMISES_H_
