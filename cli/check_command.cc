#include "cli/check_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "checker/chain.h"
#include "checker/check.h"
#include "checker/second_look.h"
#include "cli/json_report.h"
#include "cli/options.h"
#include "cli/printable.h"
#include "cli/text_report.h"
#include "common/image_lock.h"
#include "common/posix_file.h"

namespace qcow2check {
namespace {

struct Outcome {
  Report report;
  std::vector<ChainLayer> chain;
  std::string error;  // why the image could not be checked at all
  int exit_code = 0;
};

Outcome CouldNotCheck(absl::string_view error) {
  Outcome outcome;
  outcome.report.verdict = Verdict::kIncomplete;
  outcome.report.totals.check_errors = 1;
  outcome.report.coverage.skipped.push_back({"everything", std::string(error)});
  outcome.error = std::string(error);
  outcome.exit_code = ExitCodeOf(outcome.report);
  return outcome;
}

Outcome OtherFormat(const std::string& path, const std::string& format) {
  Outcome outcome = CouldNotCheck(
      absl::StrCat("'", path, "': the format '", format, "' does not support checks"));
  outcome.report.verdict = Verdict::kUnsupported;
  outcome.exit_code = 63;
  return outcome;
}

// The external data file is opened only because --verify-data asks for it.
void OpenDataFile(const std::string& image, const std::string& name, CheckOptions& options) {
  absl::StatusOr<std::string> path = ResolveName(image, name);
  if (!path.ok()) {
    options.data_file_error = std::string(path.status().message());
    return;
  }
  absl::StatusOr<std::unique_ptr<PosixFile>> file = PosixFile::Open(*path);
  if (!file.ok()) {
    options.data_file_error = std::string(file.status().message());
    return;
  }
  options.data_file_opened = true;
  options.data_file_size_bytes = (*file)->size_bytes();
}

Outcome CheckOne(const std::string& path, const CheckCommandOptions& command) {
  if (command.repair.has_value()) {
    return CouldNotCheck(absl::StrCat("this version checks but does not repair; nothing in '", path,
                                      "' was changed"));
  }
  if (command.format != "qcow2") return OtherFormat(path, command.format);
  absl::StatusOr<std::unique_ptr<PosixFile>> file = PosixFile::Open(path);
  if (!file.ok()) return CouldNotCheck(file.status().message());
  const absl::Status lock = LockForCheck((*file)->fd(), path, command.force_share);
  if (!lock.ok()) {
    Outcome outcome = CouldNotCheck(lock.message());
    outcome.report.verdict = Verdict::kLocked;
    return outcome;
  }
  CheckOptions options;
  options.max_findings = command.max_findings;
  Outcome outcome;
  if (command.verify_data) {
    options.verify_data = true;
    const ImageSummary image = SummarizeImage(**file);
    if (image.external_data_file) OpenDataFile(path, image.data_file_name, options);
  }
  const bool quick = !command.force_share;
  outcome.report = quick ? CheckImage(**file, options)
                         : CheckChangingImage([&path] { return PosixFile::Open(path); }, options);
  if (command.chain) outcome.chain = CheckChain(path, **file, options, outcome.report);
  outcome.exit_code = ExitCodeOf(outcome.report);
  return outcome;
}

void Say(absl::string_view sentence) {
  std::fprintf(stderr, "qcow2check: %s\n", Printable(sentence).c_str());
}

bool WantsColour() {
  const char* terminal = std::getenv("TERM");
  return isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr && terminal != nullptr &&
         absl::string_view(terminal) != "dumb";
}

void Print(const std::string& path, const Outcome& outcome, const CheckCommandOptions& command) {
  if (!outcome.error.empty()) Say(outcome.error);
  if (outcome.report.verdict == Verdict::kNotQcow2) {
    Say(absl::StrCat("'", path, "' is not a qcow2 image"));
  }
  if (command.quiet) return;
  const bool several = command.images.size() > 1;
  if (command.json) {
    const std::string json =
        JsonReport(path, outcome.report, outcome.chain, outcome.error, several);
    std::printf("%s\n", json.c_str());
  } else if (outcome.error.empty()) {
    const std::string text = TextReport(path, outcome.report, outcome.chain,
                                        {.colour = WantsColour(), .several_images = several});
    std::fputs(text.c_str(), stdout);
  }
}

// Worst first for a run over several images: what may be damage comes before what is waste.
int Badness(int exit_code) {
  switch (exit_code) {
    case 2:
      return 4;
    case 1:
      return 3;
    case 63:
      return 2;
    case 3:
      return 1;
    default:
      return 0;
  }
}

int Refuse(absl::string_view error, const std::vector<std::string>& arguments) {
  Say(error);
  if (AsksForJson(arguments)) {
    const Outcome outcome = CouldNotCheck(error);
    std::printf("%s\n", JsonReport("", outcome.report, {}, error, false).c_str());
  }
  return 1;
}

}  // namespace

int RunCheckCommand(const std::vector<std::string>& arguments) {
  absl::StatusOr<ParsedArguments> parsed = ParseCheckArguments(arguments);
  if (!parsed.ok()) return Refuse(parsed.status().message(), arguments);
  if (!parsed->help.empty()) {
    std::fputs(parsed->help.c_str(), stdout);
    return 0;
  }
  int worst = 0;
  const CheckCommandOptions& options = parsed->options;
  for (size_t i = 0; i < options.images.size(); ++i) {
    const Outcome outcome = CheckOne(options.images[i], options);
    Print(options.names[i], outcome, options);
    if (Badness(outcome.exit_code) > Badness(worst)) worst = outcome.exit_code;
  }
  return worst;
}

}  // namespace qcow2check
