#include "cli/repair_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/btree_map.h"
#include "cli/format_bytes.h"
#include "common/checked_math.h"
#include "common/digest.h"

namespace qcow2check {
namespace {

using Json = nlohmann::ordered_json;

// Old and new bytes are printed as they are up to this length; longer ones only as a digest.
constexpr uint64_t kBytesPrinted = 16;

std::string Text(absl::string_view text) { return std::string(text); }

// Records of findings or about findings, to be found by code and place.
template <typename T>
class ByPlace {
 public:
  void Add(FindingCode code, const std::optional<HostOffset>& offset, T value) {
    places_.insert({{code, KeyOf(offset)}, std::move(value)});
  }

  // Calls `visit` for those of `code` whose place is in [begin, end) of `finding`; for a finding
  // without a place those without one.
  template <typename Visit>
  void ForEachIn(const Finding& finding, Visit visit) const {
    const uint64_t first = KeyOf(finding.host_offset);
    const uint64_t end = SaturatingAdd(first, std::max<uint64_t>(finding.length_bytes, 1));
    for (auto it = places_.lower_bound({finding.code, first});
         it != places_.end() && it->first.first == finding.code && it->first.second < end; ++it) {
      visit(it->second);
    }
  }

  // The record of `code` that begins last at or before the place of `finding`.
  const T* LastBefore(const Finding& finding) const {
    auto it = places_.upper_bound({finding.code, KeyOf(finding.host_offset)});
    if (it == places_.begin()) return nullptr;
    --it;
    return it->first.first == finding.code ? &it->second : nullptr;
  }

 private:
  // Findings without a place come first; offsets are counted from 1.
  static uint64_t KeyOf(const std::optional<HostOffset>& offset) {
    return offset ? SaturatingAdd(offset->bytes, 1) : 0;
  }

  absl::btree_multimap<std::pair<FindingCode, uint64_t>, T> places_;
};

uint64_t ZerosDigest(uint64_t length_bytes) {
  const std::vector<uint8_t> zeros(64 << 10);
  Digest digest;
  while (length_bytes != 0) {
    const uint64_t piece = std::min<uint64_t>(length_bytes, zeros.size());
    digest.Add(absl::MakeConstSpan(zeros).first(piece));
    length_bytes -= piece;
  }
  return digest.value();
}

// The bytes in hexadecimal without spaces, or as many zeros if there are none.
std::string BytesText(const std::vector<uint8_t>& bytes, uint64_t length_bytes) {
  std::string text;
  if (bytes.empty()) return std::string(2 * length_bytes, '0');
  for (const char c : HexBytes(bytes)) {
    if (c != ' ') text.push_back(c);
  }
  return text;
}

Json WriteJson(uint64_t step, const PlannedWrite& write, uint64_t new_digest) {
  Json json;
  json["step"] = step;
  json["code"] = Text(InfoOf(write.reason.code).name);
  if (write.reason.finding_offset) json["finding-offset"] = write.reason.finding_offset->bytes;
  json["action"] = Text(NameOf(write.reason.action));
  json["safety"] = Text(NameOf(write.reason.safety));
  json["reason"] = write.reason.text;
  json["offset"] = write.offset_bytes;
  json["length"] = write.length_bytes;
  if (write.copy_from_bytes) json["copy-from"] = *write.copy_from_bytes;
  json["old-digest"] = DigestText(write.old_bytes.empty() ? ZerosDigest(write.length_bytes)
                                                          : DigestOf(write.old_bytes));
  json["new-digest"] = DigestText(new_digest);
  if (write.length_bytes <= kBytesPrinted && !write.copy_from_bytes) {
    json["old-bytes"] = BytesText(write.old_bytes, write.length_bytes);
    json["new-bytes"] = BytesText(write.new_bytes, write.length_bytes);
  }
  return json;
}

Json WritesJson(const RepairOutcome& outcome) {
  Json writes = Json::array();
  ForEachWrite(outcome.result.plan, [&](uint64_t step, const PlannedWrite& write) {
    const size_t index = writes.size();
    const uint64_t digest =
        index < outcome.new_digests.size() ? outcome.new_digests[index] : DigestOf(write.new_bytes);
    writes.push_back(WriteJson(step, write, digest));
  });
  return writes;
}

Json RangesJson(const std::vector<GuestRange>& ranges) {
  Json json = Json::array();
  for (const GuestRange& range : ranges) {
    json.push_back({{"offset", range.offset_bytes}, {"length", range.length_bytes}});
  }
  return json;
}

Json DeclinedJson(const Plan& plan) {
  Json json = Json::array();
  for (const DeclinedRepair& declined : plan.declined) {
    Json item;
    item["code"] = Text(InfoOf(declined.code).name);
    if (declined.host_offset) item["host-offset"] = declined.host_offset->bytes;
    item["reason"] = declined.reason;
    json.push_back(std::move(item));
  }
  return json;
}

bool Covers(const Finding& finding, const Finding& other) {
  if (finding.host_offset.has_value() != other.host_offset.has_value()) return false;
  if (!other.host_offset) return true;
  const uint64_t length_bytes = std::max<uint64_t>(finding.length_bytes, 1);
  return other.host_offset->bytes < SaturatingAdd(finding.host_offset->bytes, length_bytes);
}

std::vector<RepairedFinding> FindingsBefore(const RepairResult& result) {
  const auto worse = [](const PlanReason* a, const PlanReason* b) {
    return a == nullptr || b->safety > a->safety ? b : a;
  };
  ByPlace<const PlanReason*> reasons;
  absl::btree_map<FindingCode, const PlanReason*> worst;
  ForEachWrite(result.plan, [&](uint64_t, const PlannedWrite& write) {
    const PlanReason& reason = write.reason;
    reasons.Add(reason.code, reason.finding_offset, &reason);
    worst[reason.code] = worse(worst[reason.code], &reason);
  });
  std::vector<RepairedFinding> rows;
  for (const Finding& finding : result.before.findings) {
    RepairedFinding row = NotRepaired(finding);
    if (rows.size() < result.repairs.size()) row.repair = result.repairs[rows.size()];
    // What the plan does here may be another thing than what is usual for the code.
    const PlanReason* planned = nullptr;
    reasons.ForEachIn(finding, [&](const PlanReason* reason) { planned = worse(planned, reason); });
    const bool repaired =
        row.repair.status == RepairStatus::kPlanned || row.repair.status == RepairStatus::kDone;
    // Repaired elsewhere: a lost table by the entry that points to it.
    if (planned == nullptr && repaired) planned = worst[finding.code];
    if (planned != nullptr) {
      row.action = planned->action;
      row.safety = planned->safety;
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

// What the check afterwards found and the one before did not.
std::vector<RepairedFinding> NewFindings(const RepairResult& result) {
  ByPlace<const DeclinedRepair*> declined;
  for (const DeclinedRepair& one : result.plan.declined) {
    declined.Add(one.code, one.host_offset, &one);
  }
  ByPlace<const Finding*> known;
  for (const Finding& finding : result.before.findings) {
    known.Add(finding.code, finding.host_offset, &finding);
  }
  std::vector<RepairedFinding> rows;
  for (const Finding& finding : result.after.findings) {
    const Finding* const* before = known.LastBefore(finding);
    if (before != nullptr && Covers(**before, finding)) continue;
    RepairedFinding row = NotRepaired(finding);
    const auto decline = [&row](const DeclinedRepair* one) {
      row.repair = {RepairStatus::kDeclined, one->reason};
    };
    declined.ForEachIn({.code = finding.code}, decline);
    declined.ForEachIn(finding, decline);
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

RepairedFinding NotRepaired(const Finding& finding) {
  return {.finding = finding,
          .action = InfoOf(finding.code).action,
          .safety = InfoOf(finding.code).safety};
}

std::vector<RepairedFinding> RepairedFindings(const RepairOutcome& outcome) {
  std::vector<RepairedFinding> rows = FindingsBefore(outcome.result);
  for (RepairedFinding& row : NewFindings(outcome.result)) rows.push_back(std::move(row));
  std::stable_sort(rows.begin(), rows.end(),
                   [](const RepairedFinding& a, const RepairedFinding& b) {
                     return ComesBefore(a.finding, b.finding);
                   });
  return rows;
}

std::vector<CodeTotal> RepairedTotals(const RepairOutcome& outcome) {
  std::vector<CodeTotal> totals = outcome.result.before.code_totals;
  for (const RepairedFinding& row : NewFindings(outcome.result)) {
    const auto total =
        std::lower_bound(totals.begin(), totals.end(), row.finding.code,
                         [](const CodeTotal& a, FindingCode code) { return a.code < code; });
    const bool there = total != totals.end() && total->code == row.finding.code;
    CodeTotal& sum = there ? *total : *totals.insert(total, {.code = row.finding.code});
    ++sum.findings;
    sum.count += row.finding.count;
    sum.clusters += row.finding.clusters;
  }
  return totals;
}

Json RepairJson(const RepairOutcome& outcome) {
  const Plan& plan = outcome.result.plan;
  Json json;
  json["mode"] = Text(NameOf(outcome.options.mode));
  json["dry-run"] = outcome.dry_run;
  json["changed"] = outcome.result.changed;
  if (!outcome.undo_file.empty()) json["undo-file"] = outcome.undo_file;
  if (!outcome.notes.empty()) json["notes"] = outcome.notes;
  json["old-size"] = plan.old_size_bytes;
  json["new-size"] = plan.new_size_bytes;
  json["writes"] = WritesJson(outcome);
  Json discards = Json::array();
  for (const Extent& extent : plan.discards) {
    discards.push_back(
        {{"offset", extent.begin_bytes}, {"length", extent.end_bytes - extent.begin_bytes}});
  }
  json["discards"] = std::move(discards);
  json["lost-guest-ranges"] = RangesJson(plan.lost_guest_ranges);
  json["declined"] = DeclinedJson(plan);
  return json;
}

}  // namespace qcow2check
