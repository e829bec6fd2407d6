// The part of the JSON report that a repair, or the plan of one, adds.
#ifndef QCOW2CHECK_CLI_REPAIR_JSON_H_
#define QCOW2CHECK_CLI_REPAIR_JSON_H_

#include <vector>

#include "cli/repair_outcome.h"
#include "common/finding.h"
#include "nlohmann/json_fwd.hpp"

namespace qcow2check {

// A finding with what the repair did about it, as the report lists it.
struct RepairedFinding {
  Finding finding;
  FindingRepair repair;
  RepairAction action = RepairAction::kNoAction;
  RepairSafety safety = RepairSafety::kLossless;
};

// Of a check without a repair.
RepairedFinding NotRepaired(const Finding& finding);

// The findings of the check before, and those that only the check afterwards has, in the order of
// a report.
std::vector<RepairedFinding> RepairedFindings(const RepairOutcome& outcome);

// How many there are of each code, where RepairedFindings is capped too; ordered by code.
std::vector<CodeTotal> RepairedTotals(const RepairOutcome& outcome);

// The value of the key "repair".
nlohmann::ordered_json RepairJson(const RepairOutcome& outcome);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_REPAIR_JSON_H_
