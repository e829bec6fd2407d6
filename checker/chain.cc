#include "checker/chain.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/limits.h"
#include "common/nbd_connection.h"
#include "common/nbd_file.h"
#include "common/quoted.h"

namespace qcow2check {
namespace {

void Add(Report& report, FindingCode code, std::string detail) {
  AddToReport(report,
              {.code = code, .structure = Structure::kBackingFile, .detail = std::move(detail)});
}

// The formats that QEMU opens as a backing file.
bool IsKnownFormat(absl::string_view format) {
  static constexpr absl::string_view kFormats[] = {
      "raw",   "qcow2", "qcow",      "qed",  "vmdk", "vdi", "vpc",         "vhdx", "dmg",
      "bochs", "cloop", "parallels", "luks", "file", "nbd", "host_device", "vvfat"};
  return std::find(std::begin(kFormats), std::end(kFormats), format) != std::end(kFormats);
}

// Empty if it is not.
std::string WhyFormatIsWrong(absl::string_view format, const std::string& path, bool is_qcow2) {
  if (!IsKnownFormat(format)) return absl::StrCat("QEMU knows no format ", Quoted(format));
  if (format != "qcow2" || is_qcow2) return "";
  return absl::StrCat(path, " is recorded as qcow2, but is not");
}

// Nothing but the guest's data, as long as the file: there is nothing to check.
bool IsRaw(absl::string_view format) {
  return format == "raw" || format == "file" || format == "nbd" || format == "host_device";
}

// What a layer, whose own report is `below`, means for the one above it.
void JudgeLayer(const ChainLayer& layer, const Report& below, const ImageSummary& above,
                Report& report) {
  if (below.verdict != Verdict::kClean && below.verdict != Verdict::kLeaks) {
    Add(report, FindingCode::kChainLayerBad,
        absl::StrCat(layer.filename, " is ", NameOf(below.verdict), ": ", below.totals.corruptions,
                     " corruptions, ", below.totals.check_errors, " errors"));
  }
  if (below.image.virtual_size_bytes < above.virtual_size_bytes) {
    Add(report, FindingCode::kChainSmaller,
        absl::StrCat(layer.filename, " has ", below.image.virtual_size_bytes,
                     " bytes, the layer above ", above.virtual_size_bytes));
  }
}

}  // namespace

absl::StatusOr<std::string> ResolveName(const std::string& image_path, const std::string& name) {
  if (IsNbdUri(name)) return name;
  absl::string_view rest = name;
  absl::ConsumePrefix(&rest, "file:");
  if (rest.empty()) return absl::InvalidArgumentError("the name is empty");
  if (absl::StartsWith(rest, "/")) return std::string(rest);
  const size_t colon = rest.find(':');
  if (colon != absl::string_view::npos && !absl::StrContains(rest.substr(0, colon), '/')) {
    return absl::InvalidArgumentError("the name is a protocol, not a local file");
  }
  if (IsNbdUri(image_path)) {
    return absl::InvalidArgumentError(
        "the name is relative to a folder, and an image on an NBD server has none");
  }
  const size_t slash = image_path.rfind('/');
  if (slash == std::string::npos) return std::string(rest);
  return absl::StrCat(image_path.substr(0, slash + 1), rest);
}

std::vector<ChainLayer> CheckChain(const std::string& path, const ImageId& id,
                                   const CheckOptions& options, Report& report) {
  std::vector<ChainLayer> layers;
  std::set<ImageId> seen = {id};
  // Those of a layer are not opened: what is known of the image's own says nothing about them.
  CheckOptions layer_options = options;
  layer_options.data_file_opened = false;
  layer_options.data_file_error.clear();
  std::string above_path = path;
  ImageSummary above = report.image;
  while (!above.backing_name.empty()) {
    if (layers.size() >= static_cast<size_t>(kMaxChainDepth)) {
      Add(report, FindingCode::kChainCycle, absl::StrCat("more than ", kMaxChainDepth, " files"));
      break;
    }
    absl::StatusOr<std::string> layer_path = ResolveName(above_path, above.backing_name);
    absl::StatusOr<OpenedImage> layer = layer_path.ok()
                                            ? OpenToRead(*layer_path, {.uri_from = UriFrom::kImage})
                                            : layer_path.status();
    if (!layer.ok()) {
      Add(report, FindingCode::kChainMissing,
          absl::StrCat(Quoted(above.backing_name), ": ", layer.status().message()));
      report.coverage.skipped.push_back(
          {"the backing chain from " + Quoted(above.backing_name) + " on",
           std::string(layer.status().message())});
      break;
    }
    if (!seen.insert(layer->id).second) {
      Add(report, FindingCode::kChainCycle, absl::StrCat(*layer_path, " is in the chain twice"));
      break;
    }
    Report below;
    // What is in a raw file is the guest's, even if it looks like an image.
    if (above.backing_format.empty() || above.backing_format == "qcow2") {
      below = CheckImage(*layer->file, layer_options);
    } else {
      below.verdict = Verdict::kNotQcow2;
    }
    const bool is_qcow2 = below.verdict != Verdict::kNotQcow2;
    // Without a recorded format the content decides, as in QEMU (backing-format-missing warns).
    const std::string format =
        above.backing_format.empty() ? (is_qcow2 ? "qcow2" : "raw") : above.backing_format;
    if (std::string wrong = WhyFormatIsWrong(format, *layer_path, is_qcow2); !wrong.empty()) {
      Add(report, FindingCode::kChainWrongFormat, std::move(wrong));
      break;
    }
    if (format != "qcow2" && !IsRaw(format)) {
      layers.push_back({*layer_path, format, std::nullopt, Verdict::kUnsupported, {}});
      report.coverage.skipped.push_back(
          {absl::StrCat("the backing file ", Quoted(above.backing_name), " and what is below it"),
           absl::StrCat("its format is ", format)});
      break;
    }
    if (format != "qcow2") {
      below = Report();
      below.image.virtual_size_bytes = layer->file->size_bytes();
    }
    layers.push_back(
        {*layer_path, format, below.image.virtual_size_bytes, below.verdict, below.totals});
    JudgeLayer(layers.back(), below, above, report);
    above_path = *layer_path;
    above = below.image;
  }
  report.coverage.chain_layers = layers.size();
  return layers;
}

}  // namespace qcow2check
