#include "cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace qcow2check {
namespace {

constexpr char kFooter[] =
    "Other commands:\n"
    "  qcow2check inspect IMAGE [--json] ...   show the metadata (see qcow2check inspect --help)\n"
    "  qcow2check explain CODE                 what a finding means and what to do\n"
    "  qcow2check --list-codes                 all finding codes\n"
    "\n"
    "Exit codes: 0 consistent; 1 the check could not be completed; 2 corruption; 3 leaks only;\n"
    "63 not a qcow2 image. A check never changes the image.";

// "driver=qcow2,file.filename=disk.img" names its file in one of two keys.
absl::StatusOr<std::string> FilenameInImageOpts(const std::string& text) {
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(part, absl::MaxSplits('=', 1));
    if (pair.first == "file.filename" || pair.first == "filename") {
      return std::string(pair.second);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--image-opts: '", text, "' names no file (file.filename=...)"));
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
  app.add_option("IMAGE", options.images, "Image files; several give one line of JSON each")
      ->required();
  app.add_flag("--json", options.json, "Print JSON instead of text");
  std::string output = "human";
  app.add_option("--output,--out", output, "human or json")
      ->check(CLI::IsMember({"human", "json"}));
  app.add_flag("-q,--quiet", options.quiet, "Print nothing but errors");
  app.add_flag("-U,--force-share", options.force_share,
               "Check an image that a program is writing; what looks wrong is read again");
  app.add_flag("--verify-data", options.verify_data,
               "Also decompress all compressed clusters and look at the external data file");
  app.add_flag("--chain", options.chain, "Also check the backing files (opens what images name)");
  app.add_option("--max-findings", options.max_findings,
                 "List at most N findings of each code (totals are always exact)")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("-f,--format", options.format, "Only qcow2 can be checked");
  app.add_option("-r", options.repair, "Not in this version: see --repair")
      ->check(CLI::IsMember({"leaks", "all"}));
  app.add_flag("--repair{all}", options.repair,
               "Not in this version: refused, and nothing is changed");
  app.add_flag("--image-opts", options.image_opts,
               "IMAGE is a list of options, as for qemu-img (file.filename=...)");
  std::string ignored;
  std::vector<std::string> ignored_objects;
  app.add_option("-T", ignored, "Cache mode of qemu-img: accepted, not needed");
  app.add_option("--object", ignored_objects, "Accepted, not needed: no key is needed to check")
      ->allow_extra_args(false);
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
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
  options.json = options.json || output == "json";
  if (options.image_opts) {
    for (std::string& image : options.images) {
      absl::StatusOr<std::string> filename = FilenameInImageOpts(image);
      if (!filename.ok()) return filename.status();
      image = *std::move(filename);
    }
  }
  return parsed;
}

bool AsksForJson(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--json" || argument == "--output=json" || argument == "--out=json")
      return true;
    if ((argument == "--output" || argument == "--out") && i + 1 < arguments.size() &&
        arguments[i + 1] == "json") {
      return true;
    }
  }
  return false;
}

}  // namespace qcow2check
