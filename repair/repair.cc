#include "repair/repair.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "repair/apply.h"
#include "repair/plan.h"

namespace qcow2check {
namespace {

// [begin, end) in the file; a finding without a place is everywhere.
Extent PlaceOf(const Finding& finding) {
  if (!finding.host_offset) return {0, UINT64_MAX};
  const uint64_t begin = finding.host_offset->bytes;
  const uint64_t length = std::max<uint64_t>(finding.length_bytes, 1);
  return {begin, begin > UINT64_MAX - length ? UINT64_MAX : begin + length};
}

// What a plan says about findings, for looking up: plans may have many writes.
class PlanIndex {
 public:
  explicit PlanIndex(const Plan& plan) : refused_(plan.refused) {
    for (const PlanStep& step : plan.steps) AddWrites(step);
    AddWrites(plan.closing);
    for (auto& [code, offsets] : planned_) std::sort(offsets.begin(), offsets.end());
    for (const DeclinedRepair& declined : plan.declined) {
      declined_[declined.code].push_back(&declined);
    }
    // Those about all findings of a code come first, the others by place.
    for (auto& [code, rows] : declined_) {
      std::sort(rows.begin(), rows.end(), [](const DeclinedRepair* a, const DeclinedRepair* b) {
        return a->host_offset.value_or(HostOffset{0}).bytes + (a->host_offset ? 1 : 0) <
               b->host_offset.value_or(HostOffset{0}).bytes + (b->host_offset ? 1 : 0);
      });
    }
  }

  bool IsPlanned(const Finding& finding) const {
    if (planned_anywhere_.contains(finding.code)) return true;
    const auto offsets = planned_.find(finding.code);
    if (offsets == planned_.end()) return false;
    const Extent place = PlaceOf(finding);
    const auto first =
        std::lower_bound(offsets->second.begin(), offsets->second.end(), place.begin_bytes);
    return first != offsets->second.end() && *first < place.end_bytes;
  }

  // nullptr if it was not declined.
  const DeclinedRepair* FindDeclined(const Finding& finding) const {
    const auto rows = declined_.find(finding.code);
    if (rows == declined_.end()) return nullptr;
    const Extent place = PlaceOf(finding);
    if (!rows->second.front()->host_offset) return rows->second.front();
    const auto first = std::lower_bound(
        rows->second.begin(), rows->second.end(), place.begin_bytes,
        [](const DeclinedRepair* row, uint64_t begin) { return row->host_offset->bytes < begin; });
    if (first != rows->second.end() && (*first)->host_offset->bytes < place.end_bytes)
      return *first;
    return nullptr;
  }

  const std::string& refused() const { return refused_; }

 private:
  void AddWrites(const PlanStep& step) {
    for (const PlannedWrite& write : step.writes) {
      const PlanReason& reason = write.reason;
      if (reason.finding_offset) {
        planned_[reason.code].push_back(reason.finding_offset->bytes);
      } else {
        planned_anywhere_.insert(reason.code);
      }
    }
  }

  const std::string& refused_;
  absl::flat_hash_map<FindingCode, std::vector<uint64_t>> planned_;  // sorted offsets
  absl::flat_hash_set<FindingCode> planned_anywhere_;
  absl::flat_hash_map<FindingCode, std::vector<const DeclinedRepair*>> declined_;
};

bool IsDamage(const Finding& finding) {
  const Severity severity = InfoOf(finding.code).severity;
  return severity == Severity::kCorruption || severity == Severity::kLeak;
}

// What is said of a finding that nothing was planned for.
FindingRepair LeftAlone(const Finding& finding, const PlanIndex& index) {
  if (const DeclinedRepair* declined = index.FindDeclined(finding)) {
    return {RepairStatus::kDeclined, declined->reason};
  }
  if (!IsDamage(finding)) return {};
  if (!index.refused().empty()) return {RepairStatus::kDeclined, index.refused()};
  return {RepairStatus::kDeclined, "nothing in the image proves how this can be repaired"};
}

// Whether nothing of the finding's total will be left, so that it is repaired even if each write
// was planned for the sake of another finding.
bool NoneWillRemain(const Finding& finding, const Plan& plan) {
  switch (InfoOf(finding.code).tally) {
    case Tally::kCorruptions:
      return plan.remaining.corruptions == 0;
    case Tally::kLeaks:
      return plan.remaining.leaks == 0;
    default:
      return false;
  }
}

FindingRepair StatusInPlan(const Finding& finding, const Plan& plan, const PlanIndex& index) {
  const bool planned =
      index.IsPlanned(finding) ||
      (!plan.empty() && index.FindDeclined(finding) == nullptr && NoneWillRemain(finding, plan));
  return planned ? FindingRepair{RepairStatus::kPlanned, ""} : LeftAlone(finding, index);
}

enum class Found { kNo, kYes, kCannotTell };

// Whether the findings of a report are there at these places.
class ReportIndex {
 public:
  explicit ReportIndex(const Report& report) {
    for (const Finding& finding : report.findings) {
      places_[finding.code].push_back(PlaceOf(finding));
    }
    for (const CodeTotal& row : report.code_totals) {
      if (row.findings > places_[row.code].size()) cut_off_.insert(row.code);
    }
  }

  Found Find(const Finding& finding) const {
    const Extent place = PlaceOf(finding);
    if (const auto others = places_.find(finding.code); others != places_.end()) {
      for (const Extent& other : others->second) {
        if (other.begin_bytes < place.end_bytes && place.begin_bytes < other.end_bytes) {
          return Found::kYes;
        }
      }
    }
    return cut_off_.contains(finding.code) ? Found::kCannotTell : Found::kNo;
  }

 private:
  absl::flat_hash_map<FindingCode, std::vector<Extent>> places_;
  absl::flat_hash_set<FindingCode> cut_off_;  // the report does not list all of them
};

FindingRepair StatusAfterRepair(const Finding& finding, const RepairResult& result,
                                const PlanIndex& index, const ReportIndex& after) {
  const bool planned = index.IsPlanned(finding);
  switch (after.Find(finding)) {
    case Found::kNo:
      return {RepairStatus::kDone, ""};
    case Found::kCannotTell:
      // The totals are as planned, so this one is.
      if (result.status.ok() && planned) return {RepairStatus::kDone, ""};
      break;
    case Found::kYes:
      // The note of an earlier repair stays when it is made to say more.
      if (finding.code == FindingCode::kKeptByRepair && planned && result.status.ok()) {
        return {RepairStatus::kDone, ""};
      }
      break;
  }
  // What a repair that stopped has not come to was not left alone on purpose.
  const bool stopped = !result.status.ok();
  if (index.FindDeclined(finding) != nullptr || (!planned && !stopped)) {
    return LeftAlone(finding, index);
  }
  return {RepairStatus::kFailed,
          stopped ? std::string(result.status.message()) : "it is still there"};
}

void TellStatuses(RepairResult& result) {
  const PlanIndex index(result.plan);
  const ReportIndex after(result.after);
  result.repairs.clear();
  for (const Finding& finding : result.before.findings) {
    result.repairs.push_back(result.changed ? StatusAfterRepair(finding, result, index, after)
                                            : StatusInPlan(finding, result.plan, index));
    FindingRepair& repair = result.repairs.back();
    // Planned, but the repair could not begin.
    if (!result.status.ok() && repair.status == RepairStatus::kPlanned) {
      repair = {RepairStatus::kFailed, std::string(result.status.message())};
    }
  }
}

uint64_t Fixed(uint64_t before, uint64_t after) { return before > after ? before - after : 0; }

// What was begun to be written is written and looked at to the end.
CheckOptions WithoutLimits(CheckOptions check) {
  const CheckOptions none;
  check.max_memory_bytes = none.max_memory_bytes;
  check.deadline = none.deadline;
  check.processor_time_end = none.processor_time_end;
  check.progress = none.progress;
  return check;
}

// Undo log, writes, and the report of what is true then.
void CarryOut(WritableImageFile& file, const CheckOptions& check, const OpenUndoFile& open_undo,
              RepairResult& result) {
  // The plan may be for zeros in place of what is gone.
  result.status = file.availability();
  if (!result.status.ok()) return;
  std::unique_ptr<WritableImageFile> undo;
  if (open_undo != nullptr) {
    absl::StatusOr<std::unique_ptr<WritableImageFile>> opened = open_undo();
    if (!opened.ok()) {
      result.status = opened.status();
      return;
    }
    undo = *std::move(opened);
  }
  const CheckOptions to_the_end = WithoutLimits(check);
  CheckOptions metadata_only = to_the_end;
  metadata_only.verify_data = false;
  ApplyResult applied = ApplyPlan(file, result.plan, undo.get(), metadata_only);
  result.status = std::move(applied.status);
  result.changed = applied.changed;
  if (!result.changed) return;
  result.after = applied.report && !check.verify_data ? *std::move(applied.report)
                                                      : CheckImage(file, to_the_end);
}

}  // namespace

absl::string_view NameOf(RepairStatus status) {
  switch (status) {
    case RepairStatus::kNone:
      return "none";
    case RepairStatus::kPlanned:
      return "planned";
    case RepairStatus::kDone:
      return "done";
    case RepairStatus::kDeclined:
      return "declined";
    case RepairStatus::kFailed:
      return "failed";
  }
  return "";
}

RepairResult PlanRepair(const ImageFile& file, const CheckOptions& check,
                        const RepairOptions& options) {
  PlanAndReport planned = CheckAndPlan(file, check, options);
  RepairResult result{.before = std::move(planned.report)};
  result.after = result.before;
  result.plan = std::move(planned.plan);
  TellStatuses(result);
  return result;
}

RepairResult RepairImage(WritableImageFile& file, const CheckOptions& check,
                         const RepairOptions& options, const OpenUndoFile& open_undo) {
  RepairOptions of_this_file = options;
  of_this_file.fixed_size |= file.has_fixed_size();
  RepairResult result = PlanRepair(file, check, of_this_file);
  if (result.plan.empty()) return result;
  CarryOut(file, check, open_undo, result);
  TellStatuses(result);
  const Totals& before = result.before.totals;
  const Totals& after = result.after.totals;
  result.corruptions_fixed = Fixed(before.corruptions, after.corruptions);
  result.leaks_fixed = Fixed(before.leaks, after.leaks);
  return result;
}

}  // namespace qcow2check
