#include "cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iterator>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"
#include "cli/image_list.h"
#include "common/threads.h"

namespace qcow2check {
namespace {

constexpr char kFooter[] =
    "Other commands:\n"
    "  qcow2check undo UNDOFILE IMAGE          take back a repair (see qcow2check undo --help)\n"
    "  qcow2check inspect IMAGE [--json] ...   show the metadata (see qcow2check inspect --help)\n"
    "  qcow2check explain CODE                 what a finding means and what to do\n"
    "  qcow2check --list-codes                 all finding codes\n"
    "\n"
    "Exit codes: 0 consistent; 1 the check or repair could not be completed; 2 corruption;\n"
    "3 leaks only; 63 not a qcow2 image: of the image as it is at the end. Without --repair "
    "nothing\n"
    "is ever written.";

// Long options: those of `qemu-img check`, and our own.
constexpr absl::string_view kQemuOptions[] = {"help",   "format",     "repair",     "output",
                                              "object", "image-opts", "force-share"};
constexpr absl::string_view kOwnOptions[] = {
    "version",      "json",       "quiet",    "verify-data",  "chain",      "threads",
    "max-findings", "max-memory", "max-time", "progress",     "files-from", "null",
    "dry-run",      "undo-file",  "no-undo",  "free-orphans", "discard"};

constexpr char kBareRepair[] = "--repair";

// The only option that starts with `beginning`; empty if there is none or more than one.
absl::string_view OnlyMatch(absl::Span<const absl::string_view> options,
                            absl::string_view beginning) {
  absl::string_view match;
  for (const absl::string_view option : options) {
    if (option == beginning) return option;
    if (!absl::StartsWith(option, beginning)) continue;
    if (!match.empty()) return "";
    match = option;
  }
  return match;
}

// As getopt_long, qemu-img takes any unambiguous beginning of a long option ("--out json"). What
// is unambiguous there stays so here, whatever options we add.
std::vector<std::string> WithFullNames(const std::vector<std::string>& arguments) {
  std::vector<std::string> full = arguments;
  for (std::string& argument : full) {
    if (argument == "--") break;
    absl::string_view beginning = argument;
    if (!absl::ConsumePrefix(&beginning, "--")) continue;
    beginning = beginning.substr(0, beginning.find('='));
    absl::string_view match = OnlyMatch(kOwnOptions, beginning);
    if (match != beginning) {
      const absl::string_view qemu = OnlyMatch(kQemuOptions, beginning);
      const bool ambiguous = qemu.empty() && absl::c_any_of(kQemuOptions, [&](auto option) {
                               return absl::StartsWith(option, beginning);
                             });
      match = qemu.empty() && !ambiguous ? match : qemu;
    }
    if (!match.empty()) argument = absl::StrCat("--", match, argument.substr(2 + beginning.size()));
    if (argument == kBareRepair) argument = absl::StrCat(kBareRepair, "=all");
  }
  return full;
}

// qemu-img has "--repair leaks", where our --repair takes no argument behind a space. To take
// "leaks" for an image and repair everything would be more than was asked for.
absl::Status CheckForRepairArgument(const std::vector<std::string>& arguments) {
  const auto is_mode = [](absl::string_view word) { return word == "leaks" || word == "all"; };
  for (size_t i = 0; i + 1 < arguments.size() && arguments[i] != "--"; ++i) {
    if (!is_mode(arguments[i + 1]) || absl::StrContains(arguments[i], '=')) continue;
    if (WithFullNames({arguments[i]})[0] != absl::StrCat(kBareRepair, "=all")) continue;
    return absl::InvalidArgumentError(absl::StrCat("write --repair=", arguments[i + 1], " (or ./",
                                                   arguments[i + 1],
                                                   " for an image of that name)"));
  }
  return absl::OkStatus();
}

// What can only be asked for together, and what cannot.
absl::Status CheckRepairOptions(const CheckCommandOptions& options) {
  const auto wrong = [](auto... words) {
    return absl::InvalidArgumentError(absl::StrCat(words...));
  };
  if (!options.repair) {
    const absl::string_view alone = options.dry_run              ? "--dry-run"
                                    : !options.undo_file.empty() ? "--undo-file"
                                    : options.no_undo            ? "--no-undo"
                                    : options.free_orphans       ? "--free-orphans"
                                    : options.discard            ? "--discard"
                                                                 : "";
    return alone.empty() ? absl::OkStatus() : wrong(alone, " is for a repair: it needs --repair");
  }
  if (options.force_share) {
    return wrong("-U cannot be used with --repair: nobody else may use the image meanwhile");
  }
  if (!options.undo_file.empty() && options.no_undo) {
    return wrong("--undo-file and --no-undo contradict each other");
  }
  if (!options.undo_file.empty() && options.images.size() > 1) {
    return wrong("--undo-file is for one image, but ", options.images.size(), " are named");
  }
  return absl::OkStatus();
}

// CLI11 takes an argument "[a,b]" for a list of two. A NUL, which no argument can hold, hides its
// end; the names are cleaned of it afterwards.
constexpr char kNoList = '\0';

void EndAtNoList(std::string& argument) {
  if (!argument.empty() && argument.back() == kNoList) argument.pop_back();
}

// "driver=qcow2,file.filename=disk.img" names its file in one of two keys. A comma in a value is
// written twice.
absl::StatusOr<std::string> FilenameInImageOpts(const std::string& text) {
  std::vector<std::string> parts = {""};
  for (size_t i = 0; i < text.size(); ++i) {
    const bool comma = text[i] == ',';
    const bool twice = comma && i + 1 < text.size() && text[i + 1] == ',';
    if (comma && !twice) {
      parts.emplace_back();
      continue;
    }
    parts.back().push_back(text[i]);
    if (twice) ++i;
  }
  std::optional<std::string> filename;
  for (const std::string& part : parts) {
    absl::string_view value = part;
    if (absl::ConsumePrefix(&value, "file.filename=") || absl::ConsumePrefix(&value, "filename=")) {
      filename = std::string(value);  // as everywhere, the last one counts
    }
  }
  if (filename) return *filename;
  return absl::InvalidArgumentError(
      absl::StrCat("--image-opts: '", text, "' names no file (file.filename=...)"));
}

// What is read as a word first, and what is read and ignored.
struct OptionWords {
  std::optional<std::string> files_from;
  bool null = false;
  std::string output = "human";
  std::string repair;
  std::string cache;
  std::optional<double> max_time_seconds;
  std::vector<std::string> objects;
};

void AddCheckOptions(CLI::App& app, CheckCommandOptions& options, OptionWords& words) {
  app.add_option(
      "IMAGE", options.images,
      "Paths or NBD URIs (nbd://host/export, nbd+unix:///?socket=PATH); several give one line "
      "of JSON each");
  app.add_option("--files-from", words.files_from,
                 "Also read names of images from FILE (-: standard input), one a line")
      ->type_name("FILE");
  app.add_flag("-0,--null", words.null, "With --files-from: a NUL ends a name, not a line");
  app.add_flag("--json", options.json, "Print JSON instead of text");
  app.add_option("--output", words.output, "human or json")
      ->check(CLI::IsMember({"human", "json"}))
      ->take_last();
  app.add_flag("-q,--quiet", options.quiet, "Print nothing but errors");
  app.add_flag("-U,--force-share", options.force_share,
               "Check an image that a program is writing; what looks wrong is read again");
  app.add_flag("--verify-data", options.verify_data,
               "Also decompress all compressed clusters and look at the external data file");
  app.add_flag("--chain", options.chain, "Also check the backing files (opens what images name)");
  app.add_option("--threads", options.threads,
                 "Check with N threads (otherwise: one a processor); the reports are the same")
      ->type_name("N")
      ->check(CLI::Range(size_t{1}, kMaxThreads))
      ->take_last();
  app.add_option("--max-findings", options.max_findings,
                 "List at most N findings of each code (totals are always exact)")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber)
      ->take_last()
      ->capture_default_str();
  app.add_option("--max-memory", options.max_memory_bytes,
                 "End the check of an image that would take more memory than SIZE (512M, 2G)")
      ->type_name("SIZE")
      ->transform(CLI::AsSizeValue(false))
      ->take_last();
  app.add_option("--max-time", words.max_time_seconds,
                 "End the check of an image after this time, with what was found until then")
      ->type_name("SECONDS")
      ->check(CLI::PositiveNumber)
      ->take_last();
  app.add_flag("-p,--progress", options.show_progress,
               "Say on stderr how far the check is, even if that is no terminal");
  app.add_option("-f,--format", options.format, "Only qcow2 can be checked")->take_last();
  app.add_flag("--image-opts", options.image_opts,
               "IMAGE is a list of options, as for qemu-img (file.filename=...)");
  app.add_option("-T", words.cache, "Cache mode of qemu-img: accepted, not needed")->take_last();
  app.add_option("--object", words.objects, "Accepted, not needed: no key is needed to check")
      ->allow_extra_args(false);
}

void AddRepairOptions(CLI::App& app, CheckCommandOptions& options, OptionWords& words) {
  app.add_option(
         "-r,--repair", words.repair,
         "Repair what can be proven; =leaks: only free leaked clusters (--repair alone: all)")
      ->check(CLI::IsMember({"leaks", "all"}))
      ->type_name("leaks|all")
      ->take_last();
  app.add_flag("-n,--dry-run", options.dry_run,
               "With --repair: print every write it would do, and write nothing");
  app.add_option("--undo-file", options.undo_file,
                 "Keep what the repair overwrites in this new file (otherwise: IMAGE.undo)")
      ->type_name("PATH")
      ->take_last();
  app.add_flag("--no-undo", options.no_undo, "Keep nothing: the repair cannot be taken back");
  app.add_flag("--free-orphans", options.free_orphans,
               "Also free clusters that may be the only copy of lost data");
  app.add_flag("--discard", options.discard, "Punch holes where clusters were freed");
}

// The images are those named as arguments, then those in the list.
absl::Status CollectImages(const OptionWords& words, CheckCommandOptions& options) {
  if (words.files_from) {
    absl::StatusOr<std::vector<std::string>> listed =
        ReadImageList(*words.files_from, words.null ? '\0' : '\n');
    if (!listed.ok()) return listed.status();
    absl::c_move(*listed, std::back_inserter(options.images));
  } else if (words.null) {
    return absl::InvalidArgumentError("-0 is for a list of names: it needs --files-from");
  } else if (options.images.empty()) {
    return absl::InvalidArgumentError("IMAGE is required (see qcow2check --help)");
  }
  if (options.images.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--files-from: '", *words.files_from, "' names no image"));
  }
  options.several_images = options.images.size() > 1 || words.files_from;
  options.names = options.images;
  if (!options.image_opts) return absl::OkStatus();
  for (std::string& image : options.images) {
    absl::StatusOr<std::string> filename = FilenameInImageOpts(image);
    if (!filename.ok()) return filename.status();
    image = *std::move(filename);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ParsedArguments> ParseCheckArguments(const std::vector<std::string>& arguments) {
  ParsedArguments parsed;
  CheckCommandOptions& options = parsed.options;
  CLI::App app(
      "Checks qcow2 disk images: says everything that is wrong, and what it means for "
      "the data.",
      "qcow2check");
  app.footer(kFooter);
  app.set_help_flag("-h,--help", "Print this help");
  app.set_version_flag("--version,-V", "qcow2check " QCOW2CHECK_VERSION);
  OptionWords words;
  AddCheckOptions(app, options, words);
  AddRepairOptions(app, options, words);
  if (absl::Status wrong = CheckForRepairArgument(arguments); !wrong.ok()) return wrong;
  std::vector<std::string> reversed = WithFullNames(arguments);
  std::reverse(reversed.begin(), reversed.end());
  for (std::string& argument : reversed) {
    if (absl::StartsWith(argument, "[")) argument.push_back(kNoList);
  }
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    parsed.help = app.help();
    return parsed;
  } catch (const CLI::CallForVersion&) {
    parsed.help = "qcow2check " QCOW2CHECK_VERSION "\n";
    return parsed;
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(absl::StrCat(error.what(), " (see qcow2check --help)"));
  }
  for (std::string& image : options.images) EndAtNoList(image);
  EndAtNoList(options.undo_file);
  if (words.files_from) EndAtNoList(*words.files_from);
  options.json = options.json || words.output == "json";
  if (words.max_time_seconds) {
    if (std::isnan(*words.max_time_seconds)) {
      return absl::InvalidArgumentError("--max-time: nan is no number of seconds");
    }
    options.max_time = absl::Seconds(*words.max_time_seconds);
  }
  if (!words.repair.empty()) {
    options.repair = words.repair == "all" ? RepairMode::kAll : RepairMode::kLeaks;
  }
  if (absl::Status wrong = CollectImages(words, options); !wrong.ok()) return wrong;
  if (absl::Status wrong = CheckRepairOptions(options); !wrong.ok()) return wrong;
  return parsed;
}

bool AsksForJson(const std::vector<std::string>& arguments) {
  const std::vector<std::string> full = WithFullNames(arguments);
  for (size_t i = 0; i < full.size() && full[i] != "--"; ++i) {
    if (full[i] == "--json" || full[i] == "--output=json") return true;
    if (full[i] == "--output" && i + 1 < full.size() && full[i + 1] == "json") return true;
  }
  return false;
}

}  // namespace qcow2check
