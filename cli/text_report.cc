#include "cli/text_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "cli/format_bytes.h"
#include "common/finding.h"

namespace qcow2check {
namespace {

constexpr size_t kShownPerCode = 3;
constexpr size_t kRangesShown = 4;
constexpr size_t kCodeColumn = 22;
constexpr size_t kTextColumns = 78;

constexpr absl::string_view kRed = "\x1b[31m";
constexpr absl::string_view kYellow = "\x1b[33m";
constexpr absl::string_view kGreen = "\x1b[32m";
constexpr absl::string_view kPlain = "\x1b[0m";

std::string Coloured(absl::string_view text, absl::string_view colour, bool on) {
  return on ? absl::StrCat(colour, text, kPlain) : std::string(text);
}

// `text` in lines of kTextColumns, all behind an indent of kCodeColumn + 2.
std::string Wrapped(absl::string_view text) {
  std::string lines;
  size_t column = 0;
  while (!text.empty()) {
    const size_t space = std::min(text.find(' '), text.size());
    const absl::string_view word = text.substr(0, space);
    if (column != 0 && column + 1 + word.size() > kTextColumns) {
      absl::StrAppend(&lines, "\n", std::string(kCodeColumn + 2, ' '));
      column = 0;
    }
    absl::StrAppend(&lines, column == 0 ? "" : " ", word);
    column += word.size() + (column == 0 ? 0 : 1);
    text.remove_prefix(std::min(space + 1, text.size()));
  }
  return lines;
}

std::string RangeText(uint64_t offset, uint64_t length) {
  return absl::StrCat(offset == 0 ? "0" : FormatBytes(offset), " to ",
                      FormatBytes(offset + length));
}

// Where one finding is: host place, guest range, owners.
std::string PlaceText(const Finding& finding) {
  std::string text;
  if (finding.host_offset) {
    absl::StrAppend(&text, absl::StrFormat("at 0x%x", finding.host_offset->bytes));
    if (finding.clusters > 1 && !finding.target) {
      absl::StrAppend(
          &text, absl::StrFormat("-0x%x (%s clusters, %s)",
                                 finding.host_offset->bytes + finding.length_bytes - 1,
                                 FormatCount(finding.clusters), FormatBytes(finding.length_bytes)));
    }
  }
  if (finding.target)
    absl::StrAppend(&text, absl::StrFormat(", points to 0x%x", finding.target->bytes));
  if (finding.guest_offset && finding.guest_length_bytes != 0) {
    absl::StrAppend(&text, ", guest ",
                    RangeText(finding.guest_offset->bytes, finding.guest_length_bytes));
  }
  if (finding.snapshot) absl::StrAppend(&text, ", snapshot ", *finding.snapshot);
  const bool refcount = InfoOf(finding.code).action == RepairAction::kRaiseRefcount ||
                        InfoOf(finding.code).action == RepairAction::kLowerRefcount;
  if (refcount && finding.stored && finding.expected && !finding.target) {
    absl::StrAppend(&text, ": refcount ", *finding.stored, ", referenced ", *finding.expected,
                    *finding.expected == 1 ? " time" : " times");
  }
  for (size_t i = 0; i < finding.owners.size(); ++i) {
    const Owner& owner = finding.owners[i];
    absl::StrAppend(&text, i == 0 ? "; used by " : " and ", WordsOf(owner.structure));
    if (owner.guest_offset) {
      absl::StrAppend(&text, absl::StrFormat(" (guest 0x%x)", owner.guest_offset->bytes));
    }
    if (owner.snapshot) absl::StrAppend(&text, " of snapshot ", *owner.snapshot);
  }
  if (!finding.detail.empty()) absl::StrAppend(&text, text.empty() ? "" : "; ", finding.detail);
  return text;
}

std::string GroupText(const Report& report, const CodeTotal& total, bool colour) {
  const FindingCodeInfo& info = InfoOf(total.code);
  std::string text = absl::StrCat(info.sentence, ". ", info.meaning);
  const absl::string_view paint = info.severity == Severity::kCorruption ? kRed
                                  : info.severity == Severity::kInfo     ? kPlain
                                                                         : kYellow;
  std::string name(info.name);
  const std::string gap = name.size() < kCodeColumn ? std::string(kCodeColumn - name.size(), ' ')
                                                    : "\n" + std::string(kCodeColumn + 2, ' ');
  std::string lines = absl::StrCat("  ", Coloured(name, paint, colour), gap, Wrapped(text), "\n");
  size_t shown = 0;
  for (const Finding& finding : report.findings) {
    if (finding.code != total.code) continue;
    if (++shown > kShownPerCode) break;
    const std::string place = PlaceText(finding);
    if (!place.empty()) {
      absl::StrAppend(&lines, std::string(kCodeColumn + 2, ' '), Wrapped(absl::StrCat("- ", place)),
                      "\n");
    }
  }
  if (total.findings > kShownPerCode) {
    absl::StrAppend(&lines, std::string(kCodeColumn + 2, ' '), "- and ",
                    FormatCount(total.findings - kShownPerCode), " more (--json lists them)\n");
  }
  return lines;
}

std::string DataSentence(const Report& report) {
  switch (report.data) {
    case DataState::kNone:
      return "Guest data is intact.";
    case DataState::kAtRisk:
      return "Guest data is at risk: do not start the VM, do not let another tool repair it.";
    case DataState::kAmbiguous:
      return "Some guest data is ambiguous: two ranges claim the same bytes. Do not start the VM.";
    case DataState::kLost:
      return "Some guest data cannot be read. Do not start the VM, do not let another tool repair "
             "it.";
  }
  return "";
}

std::string Headline(const std::string& filename, const Report& report, bool colour) {
  const absl::string_view paint = report.verdict == Verdict::kClean   ? kGreen
                                  : report.verdict == Verdict::kLeaks ? kYellow
                                                                      : kRed;
  return absl::StrCat(filename, ": ", Coloured(NameOf(report.verdict), paint, colour), ". ",
                      report.verdict == Verdict::kNotQcow2 ? "" : DataSentence(report), "\n");
}

std::string LostRanges(const Report& report) {
  if (report.lost_guest_bytes == 0) return "";
  std::string text = absl::StrCat("\n  Guest ranges that cannot be read (",
                                  FormatBytes(report.lost_guest_bytes), "): ");
  for (size_t i = 0; i < std::min(report.lost_guest_ranges.size(), kRangesShown); ++i) {
    const GuestRange& range = report.lost_guest_ranges[i];
    absl::StrAppend(&text, i == 0 ? "" : ", ", RangeText(range.offset_bytes, range.length_bytes));
  }
  if (report.lost_guest_ranges.size() > kRangesShown) {
    absl::StrAppend(&text, ", and ", report.lost_guest_ranges.size() - kRangesShown, " more");
  }
  return absl::StrCat(text, "\n");
}

std::string Skipped(const Report& report) {
  if (report.coverage.complete()) return "";
  std::string text = "\n  Not examined:\n";
  for (size_t i = 0; i < std::min(report.coverage.skipped.size(), kRangesShown); ++i) {
    const SkippedPart& part = report.coverage.skipped[i];
    absl::StrAppend(&text, "    ", part.what, ": ", part.why, "\n");
  }
  if (report.coverage.skipped.size() > kRangesShown) {
    absl::StrAppend(&text, "    and ", report.coverage.skipped.size() - kRangesShown, " more\n");
  }
  return text;
}

std::string NextSteps(const Report& report) {
  const CodeTotal* worst = nullptr;
  for (const CodeTotal& total : report.code_totals) {
    if (worst == nullptr || InfoOf(total.code).severity < InfoOf(worst->code).severity ||
        (InfoOf(total.code).severity == InfoOf(worst->code).severity &&
         InfoOf(total.code).data > InfoOf(worst->code).data)) {
      worst = &total;
    }
  }
  if (worst == nullptr || InfoOf(worst->code).severity == Severity::kInfo) return "";
  std::string text = "\n  Next: ";
  if (report.held_back.clusters != 0) {
    absl::StrAppend(&text, "keep a copy of the file as it is; `qemu-img check -r` would destroy ",
                    FormatBytes(report.held_back.bytes), " that may be the only copy\n        ");
  }
  absl::StrAppend(&text, "qcow2check explain ", InfoOf(worst->code).name, "\n");
  return text;
}

std::string Percent(uint64_t part, uint64_t whole) {
  return absl::StrFormat("%.2f%%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

// The lines of `qemu-img check`, in its words where they are true.
std::string Summary(const Report& report) {
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
                    report.held_back.clusters != 0
                        ? "They may be the only copy of lost data: do not let any tool free them.\n"
                        : "This means waste of disk space, but no harm to data.\n");
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

}  // namespace

std::string TextReport(const std::string& filename, const Report& report,
                       const std::vector<ChainLayer>& chain, bool colour) {
  std::string text;
  std::vector<CodeTotal> groups = report.code_totals;
  std::stable_sort(groups.begin(), groups.end(), [](const CodeTotal& a, const CodeTotal& b) {
    const FindingCodeInfo& left = InfoOf(a.code);
    const FindingCodeInfo& right = InfoOf(b.code);
    if (left.severity != right.severity) return left.severity < right.severity;
    return left.data > right.data;
  });
  if (!groups.empty()) {
    text = absl::StrCat(Headline(filename, report, colour), "\n");
    for (const CodeTotal& total : groups) absl::StrAppend(&text, GroupText(report, total, colour));
    absl::StrAppend(&text, LostRanges(report), Skipped(report), NextSteps(report), "\n");
  }
  for (const ChainLayer& layer : chain) {
    absl::StrAppend(&text, "Backing file ", layer.filename, " (", layer.format,
                    "): ", NameOf(layer.verdict), "\n");
  }
  if (report.verdict != Verdict::kNotQcow2) absl::StrAppend(&text, Summary(report));
  return text;
}

}  // namespace qcow2check
