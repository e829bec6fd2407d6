// What a run with --repair did to one image, or with --dry-run would do: what its text and its
// JSON are made from.
#ifndef QCOW2CHECK_CLI_REPAIR_OUTCOME_H_
#define QCOW2CHECK_CLI_REPAIR_OUTCOME_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "repair/repair.h"

namespace qcow2check {

struct RepairOutcome {
  RepairOptions options;
  bool dry_run = false;
  bool no_undo = false;  // what is overwritten is kept nowhere, as was asked for
  RepairResult result;
  // The path of the undo file that was written, or that would be; empty: none.
  std::string undo_file;
  // What was found beside the image of an earlier, interrupted repair, and what was done about it;
  // plain sentences.
  std::vector<std::string> notes;
  // Does it, or does it again.
  std::string command_line;
  // Of what each write of the plan puts there, in the order of ForEachWrite.
  std::vector<uint64_t> new_digests;

  // Whether anything was to be written at all.
  bool nothing_to_write() const { return result.plan.empty(); }
};

absl::string_view NameOf(RepairMode mode);

// All writes of `plan` in their order, the closing ones too, with their step, counted from 1.
void ForEachWrite(const Plan& plan,
                  absl::FunctionRef<void(uint64_t step, const PlannedWrite& write)> visit);

// Whether something reads as zeros since the repair, of the disk or of a snapshot.
bool LosesData(const Plan& plan);

// Whether two users of the same bytes, of which one is wrong, get each a copy of them.
bool CopiesSharedData(const Plan& plan);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_REPAIR_OUTCOME_H_
