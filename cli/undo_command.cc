#include "cli/undo_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cli/format_bytes.h"
#include "cli/options.h"
#include "cli/printable.h"
#include "cli/shell_command.h"
#include "common/image_lock.h"
#include "common/open_image.h"
#include "common/posix_file.h"
#include "repair/undo.h"
#include "repair/undo_file.h"

namespace qcow2check {
namespace {

struct UndoCommandOptions {
  std::string undo_file;
  std::string image;
  bool force = false;
  bool json = false;
  std::string help;
};

absl::StatusOr<UndoCommandOptions> Parse(const std::vector<std::string>& arguments) {
  UndoCommandOptions options;
  CLI::App app("Gives back an image as it was before a repair, byte for byte.", "qcow2check undo");
  app.footer(
      "Nothing is written unless the image is the one that was repaired and is as the repair left\n"
      "it. Can be run again if it was interrupted. The undo file is kept.\n"
      "Exit codes: 0 the image is as it was before the repair; 1 it is not.");
  app.set_help_flag("-h,--help", "Print this help");
  app.add_option("UNDOFILE", options.undo_file, "The undo file of the repair")->required();
  app.add_option("IMAGE", options.image, "The image that was repaired: a path or an NBD URI")
      ->required();
  app.add_flag("--force", options.force,
               "Put the old bytes back even if the image was changed since (never if its header\n"
               "was): what was written since in the same places is lost, the rest may not fit");
  app.add_flag("--json", options.json, "Print JSON instead of text");
  std::string output = "human";
  app.add_option("--output", output, "human or json")->check(CLI::IsMember({"human", "json"}));
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    options.help = app.help();
    return options;
  } catch (const CLI::ParseError& error) {
    // A flag that does not exist, rather than the argument that it was taken for.
    const std::vector<std::string> unknown = app.remaining();
    return absl::InvalidArgumentError(absl::StrCat(
        unknown.empty() ? error.what() : absl::StrCat("unknown argument: ", unknown.front()),
        " (see qcow2check undo --help)"));
  }
  options.json = options.json || output == "json";
  return options;
}

absl::StatusOr<UndoResult> Undo(const UndoCommandOptions& options) {
  const absl::StatusOr<std::unique_ptr<PosixFile>> log = PosixFile::Open(options.undo_file);
  if (!log.ok()) return log.status();
  const absl::StatusOr<OpenedWritableImage> image = OpenToWrite(options.image);
  if (!image.ok()) return image.status();
  const absl::Status lock = LockForRepair(image->lock_fd, options.image);
  if (!lock.ok()) return lock;
  absl::StatusOr<UndoResult> result = UndoRepair(*image->file, **log, {.force = options.force});
  if (result.ok()) return result;
  std::string why(result.status().message());
  if (absl::IsFailedPrecondition(result.status())) {
    const auto later = FindLastFinished(*image->file, UndoFileNameOf(options.image));
    absl::StrAppend(&why,
                    later ? "; a later repair is to be taken back first: "
                          : "; --force puts the old bytes back all the same, which may break "
                            "what was written since",
                    later ? CommandLine("undo", {*later, options.image}) : "");
  }
  return absl::Status(result.status().code(),
                      absl::StrCat("'", options.image, "', '", options.undo_file, "': ", why));
}

absl::string_view NameOf(UndoOutcome outcome) {
  switch (outcome) {
    case UndoOutcome::kRestored:
      return "restored";
    case UndoOutcome::kNothingToDo:
      return "nothing-to-do";
    case UndoOutcome::kNeverBegun:
      return "never-begun";
  }
  return "";
}

std::string TextOf(const UndoCommandOptions& options, const UndoResult& result) {
  const std::string image = Printable(options.image);
  switch (result.outcome) {
    case UndoOutcome::kRestored: {
      std::string text =
          absl::StrCat(image, result.forced ? ": what the " : " is as it was before the ",
                       result.repair_was_interrupted ? "interrupted " : "", "repair",
                       result.forced ? " overwrote is back" : "", ": ", FormatBytes(result.bytes),
                       " restored in ", Counted(result.ranges, "place", "places"));
      if (result.old_size_bytes != result.new_size_bytes) {
        absl::StrAppend(&text, ", length ", FormatCount(result.old_size_bytes), " -> ",
                        Counted(result.new_size_bytes, "byte", "bytes"));
      }
      absl::StrAppend(&text, ".\n");
      if (result.forced) {
        absl::StrAppend(&text, "What else was changed since the repair is still there: ",
                        CommandLine("", {options.image}), " says what fits together.\n");
      }
      return text;
    }
    case UndoOutcome::kNothingToDo:
      return absl::StrCat(image, " is as it was before the repair; nothing was written.\n");
    case UndoOutcome::kNeverBegun:
      return absl::StrCat("The repair had not begun to change ", image, "; nothing was written.\n");
  }
  return "";
}

// `result` is nullptr if there was an error.
std::string JsonOf(const UndoCommandOptions& options, const UndoResult* result,
                   absl::string_view error) {
  nlohmann::ordered_json json;
  json["schema"] = "qcow2check-undo/1";
  json["version"] = QCOW2CHECK_VERSION;
  json["filename"] = options.image;
  json["undo-file"] = options.undo_file;
  json["outcome"] = result == nullptr ? "failed" : std::string(NameOf(result->outcome));
  if (result == nullptr) {
    json["error"] = std::string(error);
  } else {
    json["forced"] = result->forced;
    json["repair-was-interrupted"] = result->repair_was_interrupted;
    json["ranges"] = result->ranges;
    json["bytes"] = result->bytes;
    json["old-size"] = result->old_size_bytes;
    json["new-size"] = result->new_size_bytes;
  }
  return json.dump(4, ' ', true, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

int Refuse(const UndoCommandOptions& options, absl::string_view error) {
  std::fprintf(stderr, "qcow2check: %s\n", Printable(error).c_str());
  if (options.json) std::fputs(JsonOf(options, nullptr, error).c_str(), stdout);
  return 1;
}

}  // namespace

int RunUndoCommand(const std::vector<std::string>& arguments) {
  const absl::StatusOr<UndoCommandOptions> options = Parse(arguments);
  if (!options.ok()) {
    return Refuse({.json = AsksForJson(arguments)}, options.status().message());
  }
  if (!options->help.empty()) {
    std::fputs(options->help.c_str(), stdout);
    return 0;
  }
  const absl::StatusOr<UndoResult> result = Undo(*options);
  if (!result.ok()) return Refuse(*options, result.status().message());
  std::fputs((options->json ? JsonOf(*options, &*result, "") : TextOf(*options, *result)).c_str(),
             stdout);
  return 0;
}

}  // namespace qcow2check
