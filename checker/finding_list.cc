#include "checker/finding_list.h"

#include <algorithm>
#include <utility>

#include "common/checked_math.h"

namespace qcow2check {
namespace {

bool Continues(const Finding& last, const Finding& next) {
  if (!last.host_offset || !next.host_offset || !next.owners.empty() || !last.owners.empty()) {
    return false;
  }
  if (last.structure != next.structure || last.l1_index != next.l1_index ||
      last.snapshot != next.snapshot || last.detail != next.detail ||
      last.confidence != next.confidence || last.target.has_value() != next.target.has_value() ||
      last.guest_offset.has_value() != next.guest_offset.has_value()) {
    return false;
  }
  if (SaturatingAdd(last.host_offset->bytes, last.length_bytes) != next.host_offset->bytes) {
    return false;
  }
  if (last.target) {
    if (SaturatingAdd(last.target->bytes, last.guest_length_bytes) != next.target->bytes) {
      return false;
    }
  } else if (last.stored != next.stored || last.expected != next.expected) {
    return false;
  }
  return !last.guest_offset || SaturatingAdd(last.guest_offset->bytes, last.guest_length_bytes) ==
                                   next.guest_offset->bytes;
}

void Extend(Finding& last, const Finding& next) {
  last.length_bytes = SaturatingAdd(last.length_bytes, next.length_bytes);
  last.clusters += next.clusters;
  last.count += next.count;
  last.guest_length_bytes = SaturatingAdd(last.guest_length_bytes, next.guest_length_bytes);
}

}  // namespace

FindingList::FindingList(uint64_t max_per_code)
    : max_per_code_(max_per_code),
      totals_(AllFindingCodes().size()),
      kept_(AllFindingCodes().size()),
      last_(AllFindingCodes().size()) {
  for (size_t i = 0; i < totals_.size(); ++i) totals_[i].code = AllFindingCodes()[i].code;
}

void FindingList::Add(Finding finding) {
  CodeTotal& total = totals_[static_cast<size_t>(finding.code) - 1];
  total.count += finding.count;
  total.clusters += finding.clusters;
  // What only a snapshot has lost is not lost to the guest.
  if (InfoOf(finding.code).data == DataState::kLost && finding.guest_offset && !finding.snapshot) {
    lost_.Add(finding.guest_offset->bytes, finding.guest_length_bytes);
  }
  List(std::move(finding));
}

void FindingList::List(Finding finding) {
  const size_t index = static_cast<size_t>(finding.code) - 1;
  CodeTotal& total = totals_[index];
  LastOfCode& last = last_[index];
  if (total.findings != 0 && Continues(last.finding, finding)) {
    Extend(last.finding, finding);
    if (last.kept) Extend(findings_[last.position], finding);
    return;
  }
  ++total.findings;
  last.kept = kept_[index] < max_per_code_;
  last.finding = finding;
  if (last.kept) {
    ++kept_[index];
    last.position = findings_.size();
    findings_.push_back(std::move(finding));
  }
}

void FindingList::Absorb(FindingList next) {
  for (Finding& finding : next.findings_) List(std::move(finding));
  for (size_t i = 0; i < totals_.size(); ++i) {
    totals_[i].count += next.totals_[i].count;
    totals_[i].clusters += next.totals_[i].clusters;
    totals_[i].findings += next.totals_[i].findings - next.kept_[i];
    // Those it did not keep come behind all that it kept.
    if (next.totals_[i].findings > next.kept_[i]) {
      last_[i].kept = false;
      last_[i].finding = std::move(next.last_[i].finding);
    }
  }
  lost_.Append(next.lost_);
}

FindingList FindingList::FirstOf(uint64_t max_per_code) const {
  FindingList first(max_per_code);
  for (const Finding& finding : findings_) {
    uint64_t& kept = first.kept_[static_cast<size_t>(finding.code) - 1];
    if (kept == max_per_code) continue;
    ++kept;
    first.findings_.push_back(finding);
  }
  first.totals_ = totals_;
  first.lost_ = lost_;
  return first;
}

void FindingList::MoveTo(Report& report, uint64_t virtual_size_bytes) {
  std::stable_sort(findings_.begin(), findings_.end(), ComesBefore);
  report.findings = std::move(findings_);
  for (const CodeTotal& total : totals_) {
    if (total.findings == 0) continue;
    report.code_totals.push_back(total);
    const FindingCodeInfo& info = InfoOf(total.code);
    report.data = std::max(report.data, info.data);
    switch (info.tally) {
      case Tally::kCorruptions:
        report.totals.corruptions += total.count;
        break;
      case Tally::kLeaks:
        report.totals.leaks += total.count;
        break;
      case Tally::kCheckErrors:
        report.totals.check_errors += total.count;
        break;
      case Tally::kNothing:
        break;
    }
  }
  report.lost_guest_ranges = lost_.Merged(virtual_size_bytes);
  for (const GuestRange& range : report.lost_guest_ranges) {
    report.lost_guest_bytes += range.length_bytes;
  }
}

}  // namespace qcow2check
