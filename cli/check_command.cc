#include "cli/check_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checker/chain.h"
#include "checker/check.h"
#include "checker/second_look.h"
#include "cli/image_outcome.h"
#include "cli/json_report.h"
#include "cli/options.h"
#include "cli/printable.h"
#include "cli/repair_command.h"
#include "cli/repair_text.h"
#include "cli/text_report.h"
#include "common/image_lock.h"
#include "common/posix_file.h"

namespace qcow2check {
namespace {

ImageOutcome CheckOne(const std::string& path, const CheckCommandOptions& command) {
  absl::StatusOr<std::unique_ptr<PosixFile>> file = PosixFile::Open(path);
  if (!file.ok()) return CouldNotCheck(file.status().message());
  const absl::Status lock = LockForCheck((*file)->fd(), path, command.force_share);
  if (!lock.ok()) return CouldNotCheck(lock.message(), Verdict::kLocked);
  const CheckOptions options = CheckOptionsFor(path, **file, command);
  ImageOutcome outcome;
  const bool quick = !command.force_share;
  outcome.report = quick ? CheckImage(**file, options)
                         : CheckChangingImage([&path] { return PosixFile::Open(path); }, options);
  if (command.chain) outcome.chain = CheckChain(path, **file, options, outcome.report);
  outcome.exit_code = ExitCodeOf(outcome.report);
  return outcome;
}

ImageOutcome CheckOrRepair(const std::string& path, const CheckCommandOptions& command) {
  if (command.format == "qcow2") {
    return command.repair ? RepairOne(path, command) : CheckOne(path, command);
  }
  ImageOutcome outcome = CouldNotCheck(
      absl::StrCat("'", path, "': the format '", command.format, "' does not support checks"),
      Verdict::kUnsupported);
  outcome.exit_code = 63;
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

std::string TextOf(const std::string& path, const std::string& name, const ImageOutcome& outcome,
                   const CheckCommandOptions& command) {
  const bool colour = WantsColour();
  std::string repair;
  if (outcome.repair) {
    repair = RepairText(*outcome.repair, {.name = name, .path = path, .colour = colour});
  }
  // The plan has told all that is wrong.
  const bool only_closing = command.dry_run && !outcome.repair->nothing_to_write();
  const bool several = command.images.size() > 1;
  const std::string report = only_closing ? ClosingLines(outcome.report)
                                          : TextReport(name, outcome.report, outcome.chain,
                                                       {.colour = colour,
                                                        .several_images = command.images.size() > 1,
                                                        .repair_path = command.repair ? "" : path});
  // As in the output of qemu-img: no empty line between the last of a repair and the first of a
  // check.
  const bool is_its_line = absl::EndsWith(repair, "now...\n") && absl::StartsWith(report, "No ");
  const bool gap = !repair.empty() && !is_its_line && !absl::StartsWith(report, "\n");
  return absl::StrCat(repair, gap ? "\n" : "", report, only_closing && several ? "\n" : "");
}

void Print(const std::string& path, const std::string& name, const ImageOutcome& outcome,
           const CheckCommandOptions& command) {
  if (!outcome.error.empty()) Say(outcome.error);
  if (outcome.report.verdict == Verdict::kNotQcow2) {
    Say(absl::StrCat("'", name, "' is not a qcow2 image"));
  }
  if (command.quiet) return;
  if (command.json) {
    const RepairOutcome* repair = outcome.repair ? &*outcome.repair : nullptr;
    const std::string json = JsonReport(name, outcome.report, repair, outcome.chain, outcome.error,
                                        command.images.size() > 1);
    std::printf("%s\n", json.c_str());
  } else if (outcome.error.empty() || (outcome.repair && outcome.repair->result.changed)) {
    std::fputs(TextOf(path, name, outcome, command).c_str(), stdout);
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
    const ImageOutcome outcome = CouldNotCheck(error);
    std::printf("%s\n", JsonReport("", outcome.report, nullptr, {}, error, false).c_str());
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
    const ImageOutcome outcome = CheckOrRepair(options.images[i], options);
    Print(options.images[i], options.names[i], outcome, options);
    if (Badness(outcome.exit_code) > Badness(worst)) worst = outcome.exit_code;
  }
  return worst;
}

}  // namespace qcow2check
