#include "cli/text_report.h"

#include <algorithm>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "cli/format_bytes.h"
#include "cli/printable.h"
#include "cli/shell_command.h"
#include "cli/text_parts.h"
#include "cli/wrapped.h"
#include "common/finding.h"

namespace qcow2check {
namespace {

// The codes that occurred, worst first: by what they say about the data, then by severity.
std::vector<CodeTotal> WorstFirst(const Report& report) {
  std::vector<CodeTotal> codes = report.code_totals;
  std::stable_sort(codes.begin(), codes.end(), [](const CodeTotal& a, const CodeTotal& b) {
    const FindingCodeInfo& left = InfoOf(a.code);
    const FindingCodeInfo& right = InfoOf(b.code);
    return left.data != right.data ? left.data > right.data : left.severity < right.severity;
  });
  return codes;
}

std::string GroupText(const Report& report, const CodeTotal& total, bool colour) {
  const FindingCodeInfo& info = InfoOf(total.code);
  std::string lines =
      CodeParagraph(total.code, absl::StrCat(info.sentence, ". ", info.meaning), colour);
  uint64_t listed = 0, shown = 0;
  for (const Finding& finding : report.findings) {
    if (finding.code != total.code) continue;
    ++listed;
    if (shown == kShownPerCode) continue;
    const std::string place = PlaceText(finding);
    if (place.empty()) continue;
    ++shown;
    absl::StrAppend(&lines, Item(place, kCodeIndent));
  }
  // Findings without a place say no more than the code's own words.
  if (shown != 0 && total.findings > shown) {
    const std::string where = listed < total.findings
                                  ? absl::StrCat("the first ", FormatCount(listed), " with --json")
                                  : "all with --json";
    absl::StrAppend(&lines, Item(absl::StrCat("and ", FormatCount(total.findings - shown),
                                              " more places (", where, ")"),
                                 kCodeIndent));
  }
  return lines;
}

absl::string_view WordsOf(Verdict verdict) {
  switch (verdict) {
    case Verdict::kClean:
      return "clean";
    case Verdict::kLeaks:
      return "leaks";
    case Verdict::kCorrupt:
      return "corrupt";
    case Verdict::kIncomplete:
      return "could not be checked completely";
    case Verdict::kLimitExceeded:
      return "not checked to the end";
    case Verdict::kLocked:
      return "in use";
    case Verdict::kNotQcow2:
      return "not a qcow2 image";
    case Verdict::kUnsupported:
      return "uses features that this program does not know";
  }
  return "";
}

bool KeptByRepair(const Report& report) {
  return report.verdict == Verdict::kLeaks &&
         std::any_of(report.code_totals.begin(), report.code_totals.end(),
                     [](const CodeTotal& row) { return row.code == FindingCode::kKeptByRepair; });
}

absl::string_view DataSentence(const Report& report) {
  switch (report.data) {
    case DataState::kNone:
      if (report.verdict == Verdict::kNotQcow2) return "";
      return ExaminedAll(report) ? "Guest data is intact."
                                 : "No damage to guest data in the part that was examined.";
    case DataState::kAtRisk:
      // The image is consistent: its user may go on, but the clusters are not to be freed.
      if (KeptByRepair(report)) {
        return "An earlier repair kept clusters that may be lost guest data: do not let another "
               "tool "
               "free them.";
      }
      return "Guest data is at risk: do not start the VM, do not let another tool repair it.";
    case DataState::kAmbiguous:
      return "Some guest data is ambiguous: two places claim the same bytes. Do not start the VM.";
    case DataState::kLost:
      return "Some guest data cannot be read: do not start the VM, do not let another tool repair "
             "it.";
  }
  return "";
}

std::string Headline(const std::string& filename, const Report& report, bool colour) {
  const absl::string_view paint = report.verdict == Verdict::kClean   ? kGreen
                                  : report.verdict == Verdict::kLeaks ? kYellow
                                                                      : kRed;
  const std::string name = Printable(filename);
  const absl::string_view verdict = WordsOf(report.verdict);
  const absl::string_view data = DataSentence(report);
  const size_t columns = name.size() + verdict.size() + data.size() + 4;
  const bool fits = columns <= static_cast<size_t>(kTextReportColumns);
  return absl::StrCat(name, ": ", Coloured(verdict, paint, colour), ".",
                      data.empty() ? "" : (fits ? " " : "\n"), data, "\n");
}

std::string Skipped(const Report& report) {
  if (report.coverage.complete()) return "";
  std::string text = "\n  Not examined:\n";
  size_t shown = 0;
  for (const SkippedPart& part : report.coverage.skipped) {
    if (shown == kRangesShown) break;
    ++shown;
    absl::StrAppend(&text, Item(absl::StrCat(Printable(part.what), ": ", Printable(part.why)), 2));
  }
  if (report.coverage.skipped.size() > shown) {
    absl::StrAppend(&text,
                    Item(absl::StrCat("and ", FormatCount(report.coverage.skipped.size() - shown),
                                      " more (all with --json)"),
                         2));
  }
  return text;
}

bool HasRepair(const CodeTotal& total) {
  const FindingCodeInfo& info = InfoOf(total.code);
  return info.action != RepairAction::kNoAction && info.severity != Severity::kInfo;
}

std::string NextSteps(const Report& report, const CodeTotal& worst,
                      const std::string& repair_path) {
  if (InfoOf(worst.code).severity == Severity::kInfo) return "";
  std::vector<std::string> steps;
  if (report.held_back.clusters != 0) {
    steps.push_back(absl::StrCat(
        "Keep a copy of the file as it is. `qemu-img check -r` would destroy ",
        FormatBytes(report.held_back.bytes), " that may be the only copy of lost data."));
  } else if (report.data != DataState::kNone) {
    steps.emplace_back("Keep a copy of the file as it is before any program writes to it.");
  }
  for (std::string& step : steps) step = Wrapped(step, 8, 8);
  // Never wrapped: to be copied into a shell.
  if (!repair_path.empty() && absl::c_any_of(report.code_totals, HasRepair)) {
    steps.push_back(CommandLine("--repair --dry-run", {repair_path}));
  }
  steps.push_back(absl::StrCat("qcow2check explain ", InfoOf(worst.code).name));
  return absl::StrCat("\n  Next: ", absl::StrJoin(steps, "\n        "), "\n");
}

std::string Percent(uint64_t part, uint64_t whole) {
  return absl::StrFormat("%.2f%%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

absl::string_view WhatLeaksMean(const Report& report) {
  if (report.held_back.clusters != 0) {
    return "They may be the only copy of lost data: do not let any tool free them.\n";
  }
  return report.data == DataState::kNone
             ? "This means waste of disk space, but no harm to data.\n"
             : "The leaks alone mean waste of disk space; the harm is in what else was found.\n";
}

}  // namespace

std::string ClosingLines(const Report& report) {
  // In its words where they are true.
  std::string text;
  const Totals& totals = report.totals;
  if (totals.corruptions + totals.leaks + totals.check_errors == 0) {
    text = "No errors were found on the image.\n";
  }
  if (totals.corruptions != 0) {
    absl::StrAppend(&text, "\n", totals.corruptions,
                    " errors were found on the image.\nData may be corrupted, or further writes to "
                    "the image may corrupt it.\n");
  }
  if (totals.leaks != 0) {
    absl::StrAppend(&text, "\n", totals.leaks, " leaked clusters were found on the image.\n",
                    WhatLeaksMean(report));
  }
  if (totals.check_errors != 0) {
    absl::StrAppend(&text, "\n", totals.check_errors,
                    " internal errors have occurred during the check.\n");
  }
  const Statistics& s = report.statistics;
  if (s.total_clusters != 0 && s.allocated_clusters != 0) {
    absl::StrAppend(&text, s.allocated_clusters, "/", s.total_clusters, " = ",
                    Percent(s.allocated_clusters, s.total_clusters), " allocated, ",
                    Percent(s.fragmented_clusters, s.allocated_clusters), " fragmented, ",
                    Percent(s.compressed_clusters, s.allocated_clusters), " compressed clusters\n");
  }
  if (s.image_end_offset != 0) {
    absl::StrAppend(&text, "Image end offset: ", s.image_end_offset, "\n");
  }
  return text;
}

std::string TextReport(const std::string& filename, const Report& report,
                       const std::vector<ChainLayer>& chain, const TextOptions& options) {
  const std::vector<CodeTotal> codes = WorstFirst(report);
  const bool something_to_say = !codes.empty() || !report.coverage.complete();
  std::string text;
  if (something_to_say || options.several_images) {
    text = Headline(filename, report, options.colour);
  }
  if (!codes.empty()) absl::StrAppend(&text, "\n");
  for (const CodeTotal& total : codes) {
    absl::StrAppend(&text, GroupText(report, total, options.colour));
  }
  absl::StrAppend(&text,
                  RangesParagraph("Guest ranges that cannot be read", report.lost_guest_ranges),
                  Skipped(report));
  if (!codes.empty()) absl::StrAppend(&text, NextSteps(report, codes.front(), options.repair_path));
  if (something_to_say && !chain.empty()) absl::StrAppend(&text, "\n");
  for (const ChainLayer& layer : chain) {
    absl::StrAppend(
        &text, "Backing file ", Printable(layer.filename), " (", Printable(layer.format),
        "): ", layer.verdict == Verdict::kUnsupported ? "not examined" : NameOf(layer.verdict),
        "\n");
  }
  if (report.verdict != Verdict::kNotQcow2) {
    const std::string summary = ClosingLines(report);
    if (something_to_say && !absl::StartsWith(summary, "\n")) absl::StrAppend(&text, "\n");
    absl::StrAppend(&text, summary);
  }
  if (options.several_images) absl::StrAppend(&text, "\n");
  return text;
}

}  // namespace qcow2check
