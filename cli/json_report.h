// A report as JSON: QEMU's ImageCheck keys, then ours. Described by docs/qcow2check.schema.json.
#ifndef QCOW2CHECK_CLI_JSON_REPORT_H_
#define QCOW2CHECK_CLI_JSON_REPORT_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "checker/chain.h"
#include "checker/report.h"
#include "cli/repair_outcome.h"

namespace qcow2check {

// One object. `report` is of the image as it is now; `repair` is what was done to it, or nullptr if
// no repair was asked for. `error` is why the image could not be checked or repaired, or empty.
// `one_line`: for JSON Lines; otherwise indented. Strings from the image that are no UTF-8 are made
// so.
std::string JsonReport(const std::string& filename, const Report& report,
                       const RepairOutcome* repair, const std::vector<ChainLayer>& chain,
                       absl::string_view error, bool one_line);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_JSON_REPORT_H_
