// What was found out about, or done to, one image: what the program prints and its exit code.
#ifndef QCOW2CHECK_CLI_IMAGE_OUTCOME_H_
#define QCOW2CHECK_CLI_IMAGE_OUTCOME_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "checker/chain.h"
#include "checker/check.h"
#include "checker/report.h"
#include "cli/options.h"
#include "cli/repair_outcome.h"

namespace qcow2check {

struct ImageOutcome {
  Report report;  // of the image as it is at the end
  std::optional<RepairOutcome> repair;
  std::vector<ChainLayer> chain;
  std::string error;  // why the image could not be checked or repaired; a sentence
  int exit_code = 0;
};

// The image was not looked at, and this is why.
ImageOutcome CouldNotCheck(absl::string_view error, Verdict verdict = Verdict::kIncomplete);

// What `command` asks of a check of the image at `path`. Opens the external data file if
// --verify-data does.
CheckOptions CheckOptionsFor(const std::string& path, const ImageFile& file,
                             const CheckCommandOptions& command);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_IMAGE_OUTCOME_H_
