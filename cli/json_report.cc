#include "cli/json_report.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "cli/repair_json.h"
#include "common/finding.h"

namespace qcow2check {
namespace {

using Json = nlohmann::ordered_json;

std::string Text(absl::string_view text) { return std::string(text); }

void PutIf(Json& json, const char* key, const std::optional<uint64_t>& value) {
  if (value) json[key] = *value;
}

Json OwnerJson(const Owner& owner) {
  Json json;
  json["structure"] = Text(NameOf(owner.structure));
  json["host-offset"] = owner.host_offset.bytes;
  if (owner.entry_offset) json["entry-offset"] = owner.entry_offset->bytes;
  if (owner.guest_offset) json["guest-offset"] = owner.guest_offset->bytes;
  PutIf(json, "l1-index", owner.l1_index);
  PutIf(json, "l2-index", owner.l2_index);
  PutIf(json, "snapshot", owner.snapshot);
  return json;
}

Json FindingJson(const RepairedFinding& repaired) {
  const Finding& finding = repaired.finding;
  const FindingCodeInfo& info = InfoOf(finding.code);
  Json json;
  json["code"] = Text(info.name);
  json["severity"] = Text(NameOf(info.severity));
  json["message"] = MessageOf(finding);
  json["structure"] = Text(NameOf(finding.structure));
  if (finding.host_offset) {
    json["host-offset"] = finding.host_offset->bytes;
    json["length"] = finding.length_bytes;
  }
  json["clusters"] = finding.clusters;
  json["count"] = finding.count;
  if (finding.guest_offset) {
    json["guest-offset"] = finding.guest_offset->bytes;
    json["guest-length"] = finding.guest_length_bytes;
  }
  PutIf(json, "l1-index", finding.l1_index);
  PutIf(json, "l2-index", finding.l2_index);
  PutIf(json, "snapshot", finding.snapshot);
  if (finding.target) json["target-offset"] = finding.target->bytes;
  PutIf(json, "stored", finding.stored);
  PutIf(json, "expected", finding.expected);
  if (!finding.owners.empty()) {
    json["owners"] = Json::array();
    for (const Owner& owner : finding.owners) json["owners"].push_back(OwnerJson(owner));
  }
  json["confidence"] = finding.confidence == Confidence::kCertain ? "certain" : "probable";
  json["repair"] = {{"action", Text(NameOf(repaired.action))},
                    {"safety", Text(NameOf(repaired.safety))},
                    {"status", Text(NameOf(repaired.repair.status))}};
  if (!repaired.repair.reason.empty()) json["repair"]["reason"] = repaired.repair.reason;
  return json;
}

// `repaired`: the plan of a repair that has changed the image, or nullptr.
absl::string_view DataStateOf(const Report& report, const Plan* repaired) {
  if (repaired != nullptr && LosesData(*repaired)) return NameOf(DataState::kLost);
  const bool copied = repaired != nullptr && CopiesSharedData(*repaired);
  const DataState state = copied ? std::max(report.data, DataState::kAmbiguous) : report.data;
  const bool nothing_known = state == DataState::kNone && !ExaminedAll(report);
  return nothing_known ? "unknown" : NameOf(state);
}

// With what no check can see any more: what reads as zeros since the repair, or was copied.
Json DataJson(const Report& report, const Plan* repaired) {
  GuestRanges all;
  for (const GuestRange& range : report.lost_guest_ranges) {
    all.Add(range.offset_bytes, range.length_bytes);
  }
  if (repaired != nullptr) {
    for (const GuestRange& range : repaired->lost_guest_ranges) {
      all.Add(range.offset_bytes, range.length_bytes);
    }
  }
  uint64_t bytes = 0;
  Json ranges = Json::array();
  for (const GuestRange& range : all.Merged(~uint64_t{0})) {
    ranges.push_back({{"offset", range.offset_bytes}, {"length", range.length_bytes}});
    bytes += range.length_bytes;
  }
  return {{"state", Text(DataStateOf(report, repaired))},
          {"lost-guest-bytes", bytes},
          {"lost-guest-ranges", ranges}};
}

Json CoverageJson(const Coverage& coverage) {
  Json skipped = Json::array();
  for (const SkippedPart& part : coverage.skipped) {
    skipped.push_back({{"what", part.what}, {"why", part.why}});
  }
  return {{"complete", coverage.complete()},
          {"l1-tables", coverage.l1_tables},
          {"l2-tables", coverage.l2_tables},
          {"refcount-blocks", coverage.refcount_blocks},
          {"snapshots", coverage.snapshots},
          {"bitmaps", coverage.bitmaps},
          {"compressed-clusters-decompressed", coverage.compressed_clusters_decompressed},
          {"chain-layers", coverage.chain_layers},
          {"reads", coverage.reads},
          {"bytes-read", coverage.bytes_read},
          {"skipped", skipped}};
}

Json ImageJson(const ImageSummary& image) {
  Json json = {{"version", image.version},
               {"virtual-size", image.virtual_size_bytes},
               {"cluster-size", image.cluster_size},
               {"refcount-bits", image.refcount_bits},
               {"extended-l2", image.extended_l2},
               {"encrypted", image.encrypted},
               {"external-data-file", image.external_data_file},
               {"snapshots", image.snapshots},
               {"bitmaps", image.bitmaps}};
  if (!image.backing_name.empty()) json["backing-file"] = image.backing_name;
  if (!image.backing_format.empty()) json["backing-format"] = image.backing_format;
  if (!image.data_file_name.empty()) json["data-file"] = image.data_file_name;
  return json;
}

Json ChainJson(const std::vector<ChainLayer>& chain) {
  Json json = Json::array();
  for (const ChainLayer& layer : chain) {
    json.push_back({{"filename", layer.filename},
                    {"format", layer.format},
                    {"verdict", Text(NameOf(layer.verdict))},
                    {"check-errors", layer.totals.check_errors},
                    {"corruptions", layer.totals.corruptions},
                    {"leaks", layer.totals.leaks}});
    if (layer.virtual_size_bytes) json.back()["virtual-size"] = *layer.virtual_size_bytes;
  }
  return json;
}

Json HeldBackJson(const HeldBack& held_back) {
  return {{"clusters", held_back.clusters}, {"bytes", held_back.bytes}, {"why", held_back.why}};
}

void PutDiagnostics(Json& json, const std::vector<CodeTotal>& code_totals,
                    const std::vector<RepairedFinding>& findings) {
  Json totals = Json::array();
  for (const CodeTotal& total : code_totals) {
    totals.push_back({{"code", Text(InfoOf(total.code).name)},
                      {"findings", total.findings},
                      {"count", total.count},
                      {"clusters", total.clusters}});
  }
  json["diagnostic-totals"] = totals;
  json["diagnostics"] = Json::array();
  for (const RepairedFinding& finding : findings) {
    json["diagnostics"].push_back(FindingJson(finding));
  }
}

std::vector<RepairedFinding> WithoutRepair(const std::vector<Finding>& findings) {
  std::vector<RepairedFinding> rows;
  rows.reserve(findings.size());
  for (const Finding& finding : findings) rows.push_back(NotRepaired(finding));
  return rows;
}

}  // namespace

std::string JsonReport(const std::string& filename, const Report& report,
                       const RepairOutcome* repair, const std::vector<ChainLayer>& chain,
                       absl::string_view error, bool one_line) {
  Json json;
  json["filename"] = filename;
  json["format"] = "qcow2";
  json["check-errors"] = report.totals.check_errors;
  json["corruptions"] = report.totals.corruptions;
  json["leaks"] = report.totals.leaks;
  json["corruptions-fixed"] = repair == nullptr ? 0 : repair->result.corruptions_fixed;
  json["leaks-fixed"] = repair == nullptr ? 0 : repair->result.leaks_fixed;
  json["image-end-offset"] = report.statistics.image_end_offset;
  json["total-clusters"] = report.statistics.total_clusters;
  json["allocated-clusters"] = report.statistics.allocated_clusters;
  json["fragmented-clusters"] = report.statistics.fragmented_clusters;
  json["compressed-clusters"] = report.statistics.compressed_clusters;
  json["schema"] = "qcow2check/1";
  json["version"] = QCOW2CHECK_VERSION;
  const bool changed = repair != nullptr && repair->result.changed;
  const bool repaired = changed && report.verdict == Verdict::kClean;
  json["verdict"] = repaired ? "repaired" : Text(NameOf(report.verdict));
  if (!error.empty()) json["error"] = Text(error);
  json["data"] = DataJson(report, changed ? &repair->result.plan : nullptr);
  json["coverage"] = CoverageJson(report.coverage);
  if (report.image.version != 0) json["image"] = ImageJson(report.image);
  if (repair == nullptr) {
    PutDiagnostics(json, report.code_totals, WithoutRepair(report.findings));
    json["repair"]["mode"] = "none";
  } else {
    PutDiagnostics(json, RepairedTotals(*repair), RepairedFindings(*repair));
    json["repair"] = RepairJson(*repair);
  }
  const bool planned = repair != nullptr && repair->dry_run;
  json["repair"]["held-back"] =
      HeldBackJson(planned ? repair->result.plan.held_back : report.held_back);
  if (!chain.empty()) json["chain"] = ChainJson(chain);
  // ASCII, as QEMU prints it: no control character of an image's names reaches a terminal.
  return json.dump(one_line ? -1 : 4, ' ', true, Json::error_handler_t::replace);
}

}  // namespace qcow2check
