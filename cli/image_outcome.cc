#include "cli/image_outcome.h"

#include <memory>

#include "absl/status/statusor.h"
#include "cli/limits.h"
#include "common/nbd_connection.h"
#include "common/open_image.h"

namespace qcow2check {
namespace {

// The external data file is opened only because --verify-data asks for it.
void OpenDataFile(const std::string& image, const std::string& name, CheckOptions& options) {
  absl::StatusOr<std::string> path = ResolveName(image, name);
  if (!path.ok()) {
    options.data_file_error = std::string(path.status().message());
    return;
  }
  const absl::StatusOr<OpenedImage> file = OpenToRead(*path, {.uri_from = UriFrom::kImage});
  if (!file.ok()) {
    options.data_file_error = std::string(file.status().message());
    return;
  }
  options.data_file_opened = true;
  options.data_file_size_bytes = file->file->size_bytes();
}

}  // namespace

ImageOutcome CouldNotCheck(absl::string_view error, Verdict verdict) {
  ImageOutcome outcome;
  outcome.report.verdict = verdict;
  outcome.report.totals.check_errors = 1;
  outcome.report.coverage.skipped.push_back({"everything", std::string(error)});
  outcome.error = std::string(error);
  outcome.exit_code = ExitCodeOf(outcome.report);
  return outcome;
}

CheckOptions CheckOptionsFor(const std::string& path, const ImageFile& file,
                             const CheckCommandOptions& command) {
  CheckOptions options;
  SetLimits(command, options);
  options.progress = command.watched;
  options.max_findings = command.max_findings;
  options.threads = command.threads;
  if (!command.verify_data) return options;
  options.verify_data = true;
  const ImageSummary image = SummarizeImage(file);
  if (image.external_data_file) OpenDataFile(path, image.data_file_name, options);
  return options;
}

}  // namespace qcow2check
