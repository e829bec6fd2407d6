#include "checker/second_look.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace qcow2check {
namespace {

constexpr int kLooks = 5;
// Long enough for a program to finish an update of its tables.
constexpr absl::Duration kBetweenLooks = absl::Milliseconds(50);

// What makes a finding the same in two looks.
using Key = std::tuple<FindingCode, uint64_t, uint64_t, uint64_t, uint64_t>;

Key KeyOf(const Finding& finding) {
  return {finding.code, finding.host_offset.value_or(HostOffset{}).bytes, finding.length_bytes,
          finding.stored.value_or(0), finding.count};
}

std::set<Key> KeysOf(const Report& report) {
  std::set<Key> keys;
  for (const Finding& finding : report.findings) keys.insert(KeyOf(finding));
  return keys;
}

bool NothingWrong(const Report& report) {
  return report.totals.corruptions + report.totals.leaks + report.totals.check_errors == 0;
}

// The report of the last look without what the look before did not see.
Report InCommon(const Report& before, Report last) {
  const std::set<Key> seen = KeysOf(before);
  Report common = last;
  common.totals = {};
  common.code_totals.clear();
  common.findings.clear();
  common.verdict = Verdict::kClean;
  common.data = DataState::kNone;
  common.lost_guest_bytes = 0;
  uint64_t dropped = 0;
  GuestRanges lost;
  for (Finding& finding : last.findings) {
    if (seen.contains(KeyOf(finding))) {
      if (InfoOf(finding.code).data == DataState::kLost && finding.guest_offset &&
          !finding.snapshot) {
        lost.Add(finding.guest_offset->bytes, finding.guest_length_bytes);
      }
      AddToReport(common, std::move(finding));
    } else {
      ++dropped;
    }
  }
  common.lost_guest_ranges = lost.Merged(common.image.virtual_size_bytes);
  for (const GuestRange& range : common.lost_guest_ranges) {
    common.lost_guest_bytes += range.length_bytes;
  }
  AddToReport(common, {.code = FindingCode::kImageChanging,
                       .structure = Structure::kImage,
                       .detail = absl::StrCat(dropped,
                                              " findings of the last look were not there "
                                              "in the look before it")});
  common.coverage.skipped.push_back(
      {"what changed during the check", "the image is being written"});
  return common;
}

}  // namespace

Report CheckChangingImage(const OpenImage& open, const CheckOptions& options) {
  Report before;
  for (int look = 1;; ++look) {
    absl::StatusOr<std::shared_ptr<const ImageFile>> file = open();
    if (!file.ok()) {
      Report gone;
      AddToReport(gone, {.code = FindingCode::kImageChanging,
                         .structure = Structure::kImage,
                         .detail = std::string(file.status().message())});
      return gone;
    }
    Report report = CheckImage(**file, options);
    if (NothingWrong(report)) return report;
    if (look > 1 && KeysOf(report) == KeysOf(before)) return report;
    if (look == kLooks) return InCommon(before, std::move(report));
    before = std::move(report);
    absl::SleepFor(kBetweenLooks);
  }
}

}  // namespace qcow2check
