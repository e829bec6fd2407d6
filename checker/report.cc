#include "checker/report.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace qcow2check {

absl::string_view NameOf(Verdict verdict) {
  switch (verdict) {
    case Verdict::kClean:
      return "clean";
    case Verdict::kLeaks:
      return "leaks";
    case Verdict::kCorrupt:
      return "corrupt";
    case Verdict::kIncomplete:
      return "incomplete";
    case Verdict::kLimitExceeded:
      return "limit-exceeded";
    case Verdict::kLocked:
      return "locked";
    case Verdict::kNotQcow2:
      return "not-qcow2";
    case Verdict::kUnsupported:
      return "unsupported";
  }
  return "";
}

bool ComesBefore(const Finding& a, const Finding& b) {
  const auto key = [](const Finding& finding) {
    return std::make_tuple(finding.host_offset.value_or(HostOffset{}), finding.code,
                           finding.guest_offset.value_or(GuestOffset{}));
  };
  return key(a) < key(b);
}

void AddToReport(Report& report, Finding finding) {
  const FindingCodeInfo& info = InfoOf(finding.code);
  auto total = std::find_if(report.code_totals.begin(), report.code_totals.end(),
                            [&](const CodeTotal& row) { return row.code >= finding.code; });
  if (total == report.code_totals.end() || total->code != finding.code) {
    total = report.code_totals.insert(total, {.code = finding.code});
  }
  ++total->findings;
  total->count += finding.count;
  total->clusters += finding.clusters;
  report.data = std::max(report.data, info.data);
  Verdict verdict = Verdict::kClean;
  switch (info.tally) {
    case Tally::kCorruptions:
      report.totals.corruptions += finding.count;
      verdict = Verdict::kCorrupt;
      break;
    case Tally::kLeaks:
      report.totals.leaks += finding.count;
      verdict = Verdict::kLeaks;
      break;
    case Tally::kCheckErrors:
      report.totals.check_errors += finding.count;
      verdict = finding.code == FindingCode::kLimitReached ? Verdict::kLimitExceeded
                                                           : Verdict::kIncomplete;
      break;
    case Tally::kNothing:
      break;
  }
  report.verdict = std::max(report.verdict, verdict);
  const auto place =
      std::upper_bound(report.findings.begin(), report.findings.end(), finding, ComesBefore);
  report.findings.insert(place, std::move(finding));
}

bool ExaminedAll(const Report& report) {
  // Those behind it end the check early or say that there was none.
  return report.verdict <= Verdict::kCorrupt && report.coverage.complete();
}

int ExitCodeOf(const Report& report) {
  switch (report.verdict) {
    case Verdict::kClean:
      return 0;
    case Verdict::kLeaks:
      return 3;
    case Verdict::kCorrupt:
      return 2;
    case Verdict::kNotQcow2:
      return 63;
    case Verdict::kIncomplete:
    case Verdict::kLimitExceeded:
    case Verdict::kLocked:
    case Verdict::kUnsupported:
      return 1;
  }
  return 1;
}

}  // namespace qcow2check
