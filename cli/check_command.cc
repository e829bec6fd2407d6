#include "cli/check_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
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
#include "cli/watch.h"
#include "common/image_lock.h"
#include "common/open_image.h"
#include "common/ordered_jobs.h"
#include "common/posix_file.h"
#include "common/threads.h"

namespace qcow2check {
namespace {

// A server may serve one client at a time, and an export cannot change its length meanwhile.
absl::StatusOr<std::shared_ptr<const ImageFile>> OpenAgain(
    const std::string& path, const std::shared_ptr<const ImageFile>& file) {
  if (file->is_remote()) return file;
  return PosixFile::Open(path);
}

ImageOutcome CheckOne(const std::string& path, const CheckCommandOptions& command) {
  absl::StatusOr<OpenedImage> image = OpenToRead(path, {.changes = command.force_share});
  if (!image.ok()) return CouldNotCheck(image.status().message());
  const absl::Status lock = LockForCheck(image->lock_fd, path, command.force_share);
  if (!lock.ok()) return CouldNotCheck(lock.message(), Verdict::kLocked);
  const std::shared_ptr<const ImageFile> file = std::move(image->file);
  const CheckOptions options = CheckOptionsFor(path, *file, command);
  ImageOutcome outcome;
  const bool quick = !command.force_share;
  outcome.report = quick ? CheckImage(*file, options)
                         : CheckChangingImage([&] { return OpenAgain(path, file); }, options);
  // A file that somebody writes is another length at every look.
  const absl::Status there = quick || file->is_remote() ? file->availability() : absl::OkStatus();
  if (!there.ok()) return CouldNotCheck(absl::StrCat("'", path, "': ", there.message()));
  if (command.chain) outcome.chain = CheckChain(path, image->id, options, outcome.report);
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

std::string Sentence(absl::string_view sentence) {
  return absl::StrCat("qcow2check: ", Printable(sentence), "\n");
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
  const bool several = command.several_images;
  const std::string report = only_closing ? ClosingLines(outcome.report)
                                          : TextReport(name, outcome.report, outcome.chain,
                                                       {.colour = colour,
                                                        .several_images = several,
                                                        .repair_path = command.repair ? "" : path});
  // As in the output of qemu-img: no empty line between the last of a repair and the first of a
  // check.
  const bool is_its_line = absl::EndsWith(repair, "now...\n") && absl::StartsWith(report, "No ");
  const bool gap = !repair.empty() && !is_its_line && !absl::StartsWith(report, "\n");
  return absl::StrCat(repair, gap ? "\n" : "", report, only_closing && several ? "\n" : "");
}

// What is printed about one image, and its exit code.
struct ImageOutput {
  std::string out;   // for stdout
  std::string err;   // for stderr, before it
  std::string done;  // for stderr, if `out` cannot be written: what was changed
  int exit_code = 0;
};

// Empty if nothing was.
std::string WhatWasChanged(const std::string& name, const ImageOutcome& outcome) {
  if (!outcome.repair || !outcome.repair->result.changed) return "";
  const std::string& undo = outcome.repair->undo_file;
  return Sentence(absl::StrCat("'", name, "' was changed by the repair; ",
                               undo.empty()
                                   ? "nothing was kept of what was overwritten"
                                   : absl::StrCat("what was overwritten is kept in '", undo, "'")));
}

ImageOutput OutputOf(const std::string& path, const std::string& name, const ImageOutcome& outcome,
                     const CheckCommandOptions& command) {
  ImageOutput output = {.exit_code = outcome.exit_code};
  if (!outcome.error.empty()) output.err = Sentence(outcome.error);
  if (outcome.report.verdict == Verdict::kNotQcow2) {
    output.err += Sentence(absl::StrCat("'", name, "' is not a qcow2 image"));
  }
  if (command.quiet) {
    // The exit code alone does not say why.
    const std::vector<SkippedPart>& skipped = outcome.report.coverage.skipped;
    if (outcome.exit_code == 1 && output.err.empty() && !skipped.empty()) {
      output.err = Sentence(absl::StrCat("'", name, "': not examined: ", skipped.front().what, ": ",
                                         skipped.front().why));
    }
    return output;
  }
  output.done = WhatWasChanged(name, outcome);
  if (command.json) {
    const RepairOutcome* repair = outcome.repair ? &*outcome.repair : nullptr;
    output.out = JsonReport(name, outcome.report, repair, outcome.chain, outcome.error,
                            command.several_images);
    output.out += "\n";
  } else if (outcome.error.empty() || (outcome.repair && outcome.repair->result.changed)) {
    output.out = TextOf(path, name, outcome, command);
  }
  return output;
}

// An image that needs more memory than there is should not end the run over the others.
ImageOutput MakeOutput(uint64_t i, const CheckCommandOptions& command) {
  const std::string& path = command.images[i];
  const std::string& name = command.names[i];
  try {
    return OutputOf(path, name, CheckOrRepair(path, command), command);
  } catch (const std::bad_alloc&) {
    const absl::string_view what =
        command.repair ? "repair it; start the repair again" : "check it";
    const std::string error = absl::StrCat("'", path, "': not enough memory to ", what);
    return OutputOf(path, name, CouldNotCheck(error), command);
  }
}

// Both streams may lead to the same place: what is said about an image stays together.
void Print(const ImageOutput& output) {
  std::fputs(output.err.c_str(), stderr);
  std::fwrite(output.out.data(), 1, output.out.size(), stdout);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fputs(output.done.c_str(), stderr);
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

// Repairs are done one after another: two at once could be of the same image (under two names, or
// one the backing file of the other), and one of them would be refused.
uint64_t ThreadsAcrossImages(const CheckCommandOptions& command) {
  const uint64_t images = command.images.size();
  return command.repair ? 1 : std::min<uint64_t>(UsableThreads(command.threads), images);
}

Watch::Show ShowFor(const CheckCommandOptions& command) {
  if (command.quiet) return Watch::Show::kNothing;
  if (isatty(STDERR_FILENO) == 1) return Watch::Show::kLine;
  return command.show_progress ? Watch::Show::kLines : Watch::Show::kNothing;
}

int Refuse(absl::string_view error, const std::vector<std::string>& arguments) {
  ImageOutput output = {.err = Sentence(error)};
  if (AsksForJson(arguments)) {
    const ImageOutcome outcome = CouldNotCheck(error);
    output.out = JsonReport("", outcome.report, nullptr, {}, error, false) + "\n";
  }
  Print(output);
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
  CheckCommandOptions& options = parsed->options;
  const uint64_t threads = ThreadsAcrossImages(options);
  // Threads that have images of their own do not share them out.
  if (threads > 1) options.threads = 1;
  options.images_at_once = threads;
  Progress progress;
  options.watched = &progress;
  Watch watch(progress, options.images.size(), ShowFor(options));
  int worst = 0;
  RunInOrder<ImageOutput>(
      options.images.size(), threads,
      [&options](uint64_t, uint64_t image) { return MakeOutput(image, options); },
      [&](const ImageOutput& output) {
        watch.FinishImage();
        Print(output);
        if (Badness(output.exit_code) > Badness(worst)) worst = output.exit_code;
      });
  return worst;
}

}  // namespace qcow2check
