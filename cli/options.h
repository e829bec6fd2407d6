// The command line of `qcow2check [check]`, which also takes every argument of `qemu-img check`.
#ifndef QCOW2CHECK_CLI_OPTIONS_H_
#define QCOW2CHECK_CLI_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "checker/progress.h"
#include "repair/repair_plan.h"

namespace qcow2check {

struct CheckCommandOptions {
  std::vector<std::string> images;  // paths
  std::vector<std::string> names;   // what the caller called them; with --image-opts no paths
  bool several_images = false;      // a report is one of many, even if there happens to be one
  bool json = false;
  bool quiet = false;
  bool force_share = false;
  bool verify_data = false;
  bool chain = false;
  uint64_t threads = 0;  // across images, or within the only one; 0: as many as are of use
  uint64_t max_findings = 1000;
  uint64_t max_memory_bytes = 0;                       // for each check; 0: no limit
  absl::Duration max_time = absl::InfiniteDuration();  // for each image
  bool show_progress = false;
  std::string format = "qcow2";
  bool image_opts = false;
  std::optional<RepairMode> repair;  // nothing: only check
  // The rest only with `repair`.
  bool dry_run = false;
  std::string undo_file;  // empty: a name of our choice beside the image
  bool no_undo = false;
  bool free_orphans = false;
  bool discard = false;
  // No arguments, but what the images of a run share.
  uint64_t images_at_once = 1;
  Progress* watched = nullptr;
};

// What the arguments ask for. `help` is set instead if they ask for help or the version.
struct ParsedArguments {
  CheckCommandOptions options;
  std::string help;
};

// Parses the arguments behind the program's name and an optional "check", and reads the names of
// images from where --files-from says. One clear sentence for wrong usage (kInvalidArgument) and
// for a list of names that cannot be read.
absl::StatusOr<ParsedArguments> ParseCheckArguments(const std::vector<std::string>& arguments);

// Whether the arguments ask for JSON, told even if they are wrong otherwise.
bool AsksForJson(const std::vector<std::string>& arguments);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_OPTIONS_H_
