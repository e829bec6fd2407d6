#include "cli/inspect_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "checker/inspect.h"
#include "cli/inspect_json.h"
#include "cli/inspect_result.h"
#include "cli/inspect_text.h"
#include "cli/options.h"
#include "cli/printable.h"
#include "common/image_lock.h"
#include "common/open_image.h"

namespace qcow2check {
namespace {

// What an overview shows of each list.
constexpr InspectCaps kOverviewCaps = {.entries = 64, .details = 8, .directory = 64};

struct InspectOptions {
  std::string image;
  bool json = false;
  bool header = false;
  bool extensions = false;
  bool l1 = false;
  bool refcounts = false;
  bool snapshots = false;
  bool bitmaps = false;
  std::optional<uint64_t> l2;
  std::optional<uint64_t> cluster;
  std::optional<uint64_t> guest;
  std::string help;  // set instead if the arguments ask for help or the version

  bool overview() const {
    return !header && !extensions && !l1 && !refcounts && !snapshots && !bitmaps && !l2 &&
           !cluster && !guest;
  }
};

absl::StatusOr<uint64_t> ParseNumber(absl::string_view text) {
  uint64_t number = 0;
  const bool hex = absl::StartsWithIgnoreCase(text, "0x");
  // The functions below would also take signs and blanks.
  const bool plain = absl::c_all_of(text, [](unsigned char c) { return absl::ascii_isalnum(c); });
  if (!plain || !(hex ? absl::SimpleHexAtoi(text, &number) : absl::SimpleAtoi(text, &number))) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not a number"));
  }
  return number;
}

absl::StatusOr<InspectOptions> Parse(const std::vector<std::string>& arguments) {
  InspectOptions options;
  CLI::App app("Shows what is stored in a qcow2 image, decoded but not judged.",
               "qcow2check inspect");
  app.footer(
      "Without any of the options that choose a part, all parts are shown, long lists cut short.\n"
      "Exit codes: 0 shown; 1 something asked for cannot be shown; 63 not a qcow2 image.");
  app.set_help_flag("-h,--help", "Print this help");
  app.add_option("IMAGE", options.image, "The image: a path or an NBD URI")->required();
  app.add_flag("--json", options.json, "Print JSON instead of text");
  std::string output = "human";
  app.add_option("--output", output, "human or json")->check(CLI::IsMember({"human", "json"}));
  app.add_flag("--header", options.header, "The header, field by field");
  app.add_flag("--extensions", options.extensions, "The header extensions");
  app.add_flag("--l1", options.l1, "The active L1 table");
  app.add_flag("--refcounts", options.refcounts, "The refcount table and its blocks");
  app.add_flag("--snapshots", options.snapshots, "The snapshot table");
  app.add_flag("--bitmaps", options.bitmaps, "The bitmap directory and tables");
  std::optional<std::string> l2, cluster, guest;
  app.add_option("--l2", l2, "The L2 table in slot N of the L1 table")->type_name("N");
  app.add_option("--cluster", cluster, "Who uses host cluster N")->type_name("N");
  app.add_option("--guest", guest, "Where the guest byte at OFFSET is (4096, 0x1000, 4K, 1G)")
      ->type_name("OFFSET");
  bool ignored = false;
  app.add_flag("-U,--force-share", ignored, "Accepted, not needed: nothing is refused to a reader");
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    options.help = app.help();
    return options;
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(error.what(), " (see qcow2check inspect --help)"));
  }
  options.json = options.json || output == "json";
  const auto read = [](const std::optional<std::string>& text, absl::string_view option, auto parse,
                       std::optional<uint64_t>& value) -> absl::Status {
    if (!text) return absl::OkStatus();
    absl::StatusOr<uint64_t> number = parse(*text);
    if (!number.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(option, ": ", number.status().message()));
    }
    value = *number;
    return absl::OkStatus();
  };
  absl::Status status = read(l2, "--l2", ParseNumber, options.l2);
  status.Update(read(cluster, "--cluster", ParseNumber, options.cluster));
  status.Update(read(guest, "--guest", ParseByteOffset, options.guest));
  if (!status.ok()) return status;
  return options;
}

InspectResult Inspect(ImageInspector& inspector, const InspectOptions& options) {
  const bool all = options.overview();
  InspectResult result = {.filename = options.image,
                          .header = inspector.ShowHeader(),
                          .show_header = all || options.header};
  if (all || options.extensions) result.extensions = inspector.ShowExtensions();
  if (all || options.l1) result.l1 = inspector.ShowL1();
  if (all || options.refcounts) result.refcounts = inspector.ShowRefcounts();
  if (all || options.snapshots) result.snapshots = inspector.ShowSnapshots();
  if (all || options.bitmaps) result.bitmaps = inspector.ShowBitmaps();
  if (options.l2) result.l2 = inspector.ShowL2(*options.l2);
  if (options.guest) result.guest = inspector.Locate(GuestOffset{*options.guest});
  if (options.cluster) result.cluster = inspector.FindOwners(ClusterIndex{*options.cluster});
  result.notes = inspector.Unread();
  return result;
}

// Why something that was asked for by name cannot be shown; empty if all could.
std::string FirstError(const InspectResult& result) {
  std::string error;
  const auto look = [&error](const auto& section) {
    if (section && !section->ok() && error.empty())
      error = std::string(section->status().message());
  };
  look(result.extensions);
  look(result.l1);
  look(result.refcounts);
  look(result.snapshots);
  look(result.bitmaps);
  look(result.l2);
  look(result.guest);
  look(result.cluster);
  return error;
}

void Say(absl::string_view sentence) {
  std::fprintf(stderr, "qcow2check: %s\n", Printable(sentence).c_str());
}

int Refuse(const std::string& image, absl::string_view error, bool json, int exit_code) {
  Say(error);
  if (json) std::printf("%s\n", InspectErrorJson(image, error).c_str());
  return exit_code;
}

}  // namespace

absl::StatusOr<uint64_t> ParseByteOffset(absl::string_view text) {
  constexpr absl::string_view kUnits = "KMGTPE";
  const absl::string_view whole = text;
  int shift = 0;
  // Hexadecimal digits end in E, too; a number in hexadecimal has no unit.
  if (!text.empty() && !absl::StartsWithIgnoreCase(text, "0x")) {
    const size_t unit = kUnits.find(absl::ascii_toupper(static_cast<unsigned char>(text.back())));
    if (unit != absl::string_view::npos) {
      shift = static_cast<int>(unit + 1) * 10;
      text.remove_suffix(1);
    }
  }
  absl::StatusOr<uint64_t> number = ParseNumber(text);
  if (!number.ok() || *number > ~uint64_t{0} >> shift) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", whole, "' is not an offset (such as 4096, 0x1000, 4K or 1G)"));
  }
  return *number << shift;
}

int RunInspectCommand(const std::vector<std::string>& arguments) {
  absl::StatusOr<InspectOptions> options = Parse(arguments);
  if (!options.ok()) return Refuse("", options.status().message(), AsksForJson(arguments), 1);
  if (!options->help.empty()) {
    std::fputs(options->help.c_str(), stdout);
    return 0;
  }
  const std::string& path = options->image;
  const absl::StatusOr<OpenedImage> image = OpenToRead(path);
  if (!image.ok()) return Refuse(path, image.status().message(), options->json, 1);
  // Looking harms nobody, so the image may be in use, as for a check with -U.
  const absl::Status lock = LockForCheck(image->lock_fd, path, /*force_share=*/true);
  if (!lock.ok()) return Refuse(path, lock.message(), options->json, 1);
  ImageInspector inspector(*image->file, options->overview() ? kOverviewCaps : InspectCaps{});
  // Whoever has the file in use may make it longer.
  const auto connection = [&file = *image->file] {
    return file.is_remote() ? file.availability() : absl::OkStatus();
  };
  const auto lost = [&](const absl::Status& why) {
    return Refuse(path, absl::StrCat("'", path, "': ", why.message()), options->json, 1);
  };
  if (absl::Status why = connection(); !why.ok()) return lost(why);
  if (!inspector.is_qcow2()) {
    return Refuse(path, absl::StrCat("'", path, "' is not a qcow2 image"), options->json, 63);
  }
  const InspectResult result = Inspect(inspector, *options);
  if (absl::Status why = connection(); !why.ok()) return lost(why);
  std::fputs((options->json ? InspectJson(result) + "\n" : InspectText(result)).c_str(), stdout);
  const std::string error = FirstError(result);
  // An overview shows what there is; the parts that it cannot show say why.
  if (error.empty() || options->overview()) return 0;
  Say(absl::StrCat("'", path, "': ", error));
  return 1;
}

}  // namespace qcow2check
