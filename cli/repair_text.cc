#include "cli/repair_text.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/format_bytes.h"
#include "cli/printable.h"
#include "cli/shell_command.h"
#include "cli/text_parts.h"
#include "cli/wrapped.h"

namespace qcow2check {
namespace {

// Old and new bytes are printed up to this length.
constexpr uint64_t kBytesPrinted = 16;

uint64_t SizeOf(const std::vector<const PlannedWrite*>& writes) {
  uint64_t bytes = 0;
  for (const PlannedWrite* write : writes) bytes += write->length_bytes;
  return bytes;
}

std::string Paragraph(absl::string_view text) {
  return absl::StrCat("\n  ", Wrapped(text, 2, 2), "\n");
}

// A line of its own that is never wrapped: to be copied into a shell.
std::string CommandParagraph(absl::string_view what, absl::string_view command) {
  return absl::StrCat("\n  ", Wrapped(what, 2, 2), "\n    ", command, "\n");
}

// --- What is written ---

// Writes of one kind: the same code, action and safety.
struct WriteGroup {
  PlanReason reason;
  std::vector<const PlannedWrite*> writes;
};

bool IsSameKind(const PlanReason& a, const PlanReason& b) {
  return std::tie(a.code, a.action, a.safety) == std::tie(b.code, b.action, b.safety);
}

// In the order of their first writes.
std::vector<WriteGroup> GroupsOf(const Plan& plan) {
  std::vector<WriteGroup> groups;
  ForEachWrite(plan, [&](uint64_t, const PlannedWrite& write) {
    auto group = std::find_if(groups.begin(), groups.end(), [&](const WriteGroup& one) {
      return IsSameKind(one.reason, write.reason);
    });
    if (group == groups.end()) group = groups.insert(groups.end(), {.reason = write.reason});
    group->writes.push_back(&write);
  });
  return groups;
}

std::string BytesText(const std::vector<uint8_t>& bytes, uint64_t length_bytes) {
  return HexBytes(bytes.empty() ? std::vector<uint8_t>(length_bytes) : bytes);
}

std::string WriteText(const PlannedWrite& write) {
  std::string text = absl::StrFormat("at 0x%x", write.offset_bytes);
  if (write.copy_from_bytes) {
    absl::StrAppend(&text, ", ", FormatBytes(write.length_bytes),
                    absl::StrFormat(" copied from 0x%x", *write.copy_from_bytes));
  } else if (write.length_bytes <= kBytesPrinted) {
    absl::StrAppend(&text, ", ", BytesText(write.old_bytes, write.length_bytes), " -> ",
                    BytesText(write.new_bytes, write.length_bytes));
  } else {
    absl::StrAppend(&text, ", ", FormatBytes(write.length_bytes));
  }
  return text;
}

std::string GroupText(const WriteGroup& group, bool colour) {
  const bool one_reason = std::all_of(
      group.writes.begin(), group.writes.end(),
      [&](const PlannedWrite* write) { return write->reason.text == group.reason.text; });
  std::string text =
      CodeParagraph(group.reason.code,
                    absl::StrCat(NameOf(group.reason.action), ", ", NameOf(group.reason.safety),
                                 ": ", Counted(group.writes.size(), "write", "writes"), ", ",
                                 FormatBytes(SizeOf(group.writes)), one_reason ? ": " : "",
                                 one_reason ? Printable(group.reason.text) : ""),
                    colour);
  size_t shown = 0;
  for (const PlannedWrite* write : group.writes) {
    if (shown == kShownPerCode) break;
    ++shown;
    absl::StrAppend(&text, Item(absl::StrCat(WriteText(*write), one_reason ? "" : ": ",
                                             one_reason ? "" : Printable(write->reason.text)),
                                kCodeIndent));
  }
  if (group.writes.size() > shown) {
    absl::StrAppend(&text, Item(absl::StrCat("and ", FormatCount(group.writes.size() - shown),
                                             " more (all with --json)"),
                                kCodeIndent));
  }
  return text;
}

enum class Costs { kNothing, kData, kOrphans };

Costs CostsOf(const PlanReason& reason) {
  if (reason.safety == RepairSafety::kLossy) return Costs::kData;
  const bool frees =
      reason.code == FindingCode::kLeakSuspicious && reason.action == RepairAction::kLowerRefcount;
  return frees ? Costs::kOrphans : Costs::kNothing;
}

// The groups that cost the same, under one heading.
std::string GroupsText(const std::vector<WriteGroup>& groups, Costs costs,
                       absl::string_view heading, bool colour) {
  const bool warns = costs != Costs::kNothing;
  std::string text;
  for (const WriteGroup& group : groups) {
    if (CostsOf(group.reason) != costs) continue;
    if (text.empty()) {
      text =
          heading.empty()
              ? "\n"
              : absl::StrCat("\n  ", Coloured(heading, warns ? kRed : "", warns && colour), "\n");
    }
    absl::StrAppend(&text, GroupText(group, colour));
  }
  return text;
}

std::string WritesText(const RepairOutcome& outcome, bool colour) {
  const Plan& plan = outcome.result.plan;
  const std::vector<WriteGroup> groups = GroupsOf(plan);
  const std::string losing = GroupsText(groups, Costs::kData,
                                        outcome.dry_run ? "THIS WOULD GIVE UP DATA that cannot be "
                                                          "found in the image:"
                                                        : "THIS GAVE UP DATA that cannot be found "
                                                          "in the image:",
                                        colour);
  // Only on request: --free-orphans.
  const std::string freeing =
      GroupsText(groups, Costs::kOrphans,
                 outcome.dry_run ? "THIS WOULD FREE what may be the only copy of something:"
                                 : "THIS FREED what may be the only copy of something:",
                 colour);
  const std::string copying =
      CopiesSharedData(plan)
          ? Paragraph(absl::StrCat(
                "Where two claimed the same bytes, each ", outcome.dry_run ? "would have" : "has",
                " a copy of its own now. The guest reads what it read before, but of the two one "
                "is wrong: compare the guest's with a backup."))
          : "";
  return absl::StrCat(
      losing,
      RangesParagraph(outcome.dry_run ? "Guest ranges that would read as zeros from then on"
                                      : "Guest ranges that read as zeros from now on",
                      plan.lost_guest_ranges),
      freeing,
      GroupsText(groups, Costs::kNothing,
                 losing.empty() && freeing.empty() ? "" : "This loses nothing:", colour),
      copying);
}

std::string SizeText(const RepairOutcome& outcome) {
  const Plan& plan = outcome.result.plan;
  std::string text;
  if (plan.new_size_bytes != plan.old_size_bytes) {
    absl::StrAppend(&text, Paragraph(absl::StrCat(
                               "The file ", outcome.dry_run ? "would become " : "became ",
                               plan.new_size_bytes > plan.old_size_bytes ? "longer: " : "shorter: ",
                               FormatCount(plan.old_size_bytes), " -> ",
                               FormatCount(plan.new_size_bytes), " bytes.")));
  }
  if (plan.discards.empty()) return text;
  uint64_t bytes = 0;
  for (const Extent& extent : plan.discards) bytes += extent.end_bytes - extent.begin_bytes;
  absl::StrAppend(&text, Paragraph(absl::StrCat(
                             outcome.dry_run ? "Holes would be punched" : "Holes were punched",
                             " where clusters were freed: ", FormatBytes(bytes), " in ",
                             Counted(plan.discards.size(), "place", "places"), ".")));
  return text;
}

// --- What is not ---

// Findings of one code that are left, by reason.
struct LeftGroup {
  struct ForOneReason {
    std::string reason;
    std::vector<std::string> places;  // the first ones
    uint64_t findings = 0;
  };

  FindingCode code{};
  std::vector<ForOneReason> reasons;
};

void AddLeft(std::vector<LeftGroup>& groups, const Finding& finding, const std::string& reason) {
  auto group = std::find_if(groups.begin(), groups.end(),
                            [&](const LeftGroup& one) { return one.code == finding.code; });
  if (group == groups.end()) group = groups.insert(group, {.code = finding.code});
  std::vector<LeftGroup::ForOneReason>& reasons = group->reasons;
  auto row = std::find_if(reasons.begin(), reasons.end(),
                          [&](const auto& one) { return one.reason == reason; });
  if (row == reasons.end()) row = reasons.insert(row, {.reason = reason});
  ++row->findings;
  if (finding.host_offset && row->places.size() < kShownPerCode) {
    row->places.push_back(absl::StrFormat("0x%x", finding.host_offset->bytes));
  }
}

std::string LeftText(const LeftGroup& group, bool colour) {
  uint64_t findings = 0, shown = 0;
  std::string items;
  for (const LeftGroup::ForOneReason& row : group.reasons) {
    findings += row.findings;
    if (++shown > kShownPerCode) continue;
    std::string where = absl::StrJoin(row.places, ", ");
    if (!where.empty() && row.findings > row.places.size()) {
      absl::StrAppend(&where, " and ", FormatCount(row.findings - row.places.size()), " more");
    }
    absl::StrAppend(&items, Item(absl::StrCat(where.empty() ? "" : "at ", where,
                                              where.empty() ? "" : ": ", Printable(row.reason)),
                                 kCodeIndent));
  }
  if (shown > kShownPerCode) {
    absl::StrAppend(&items, Item(absl::StrCat("and ", FormatCount(shown - kShownPerCode),
                                              " more reasons (all with --json)"),
                                 kCodeIndent));
  }
  return absl::StrCat(CodeParagraph(group.code, Counted(findings, "finding", "findings"), colour),
                      items);
}

// Clusters that are kept, not what makes that necessary.
bool IsHeldBack(const Finding& finding) {
  const FindingCodeInfo& info = InfoOf(finding.code);
  return info.action == RepairAction::kHoldBack && info.severity == Severity::kLeak;
}

// The findings of one status, by code and reason; empty if there are none.
std::string LeftsText(const RepairOutcome& outcome, RepairStatus status, absl::string_view heading,
                      bool colour) {
  std::vector<LeftGroup> groups;
  const RepairResult& result = outcome.result;
  for (size_t i = 0; i < std::min(result.repairs.size(), result.before.findings.size()); ++i) {
    const Finding& finding = result.before.findings[i];
    // HeldBackText is about those.
    if (IsHeldBack(finding)) continue;
    if (result.repairs[i].status == status) AddLeft(groups, finding, result.repairs[i].reason);
  }
  std::string text = groups.empty() ? "" : Paragraph(heading);
  for (const LeftGroup& group : groups) absl::StrAppend(&text, LeftText(group, colour));
  return text;
}

// Where orphans are and what they look like.
std::string OrphansText(const Report& report) {
  std::string text;
  size_t listed = 0;
  for (const Finding& finding : report.findings) {
    if (!IsHeldBack(finding)) continue;
    const std::string place = PlaceText(finding);
    if (!place.empty() && ++listed <= kShownPerCode) absl::StrAppend(&text, Item(place, 2));
  }
  if (listed <= kShownPerCode) return text;
  return absl::StrCat(text, Item(absl::StrCat("and ", FormatCount(listed - kShownPerCode),
                                              " more places (all with --json)"),
                                 2));
}

// Why --free-orphans has not freed them.
std::string WhyNotFreedText(const Plan& plan) {
  std::string text;
  size_t listed = 0;
  for (const DeclinedRepair& declined : plan.declined) {
    if (declined.code != FindingCode::kLeakSuspicious || !declined.host_offset) continue;
    if (++listed > kShownPerCode) continue;
    absl::StrAppend(&text, Item(absl::StrFormat("at 0x%x: %s", declined.host_offset->bytes,
                                                Printable(declined.reason)),
                                2));
  }
  return text;
}

std::string HeldBackText(const RepairOutcome& outcome, const std::string& path) {
  const RepairResult& result = outcome.result;
  const HeldBack& held = outcome.dry_run ? result.plan.held_back : result.after.held_back;
  if (held.clusters == 0) return "";
  // Afterwards a check only knows that a repair kept them.
  const std::string& why = result.before.held_back.why;
  std::string text = Paragraph(absl::StrCat(
      "Held back: ", Counted(held.clusters, "cluster", "clusters"), " (", FormatBytes(held.bytes),
      ") that are counted more often than referenced and may be the only copy of something",
      why.empty() ? "" : ": ", Printable(why), ". They keep their refcounts."));
  // After a repair the report of what is left lists them.
  if (outcome.dry_run) absl::StrAppend(&text, OrphansText(result.before));
  if (outcome.options.free_orphans) return absl::StrCat(text, WhyNotFreedText(result.plan));
  const bool corrupt =
      (outcome.dry_run ? result.before : result.after).verdict == Verdict::kCorrupt;
  return absl::StrCat(
      text,
      CommandParagraph(corrupt ? "What is lost may still be in them: keep a copy of the file. "
                                 "Only once nobody misses anything, this frees them:"
                               : "Once you are sure that nobody misses them, this frees them:",
                       CommandLine("--repair --free-orphans", {path})));
}

// --- Undo, and the lines of qemu-img ---

std::string UndoText(const RepairOutcome& outcome, const std::string& path) {
  if (outcome.result.plan.empty()) return "";
  if (outcome.undo_file.empty()) {
    // It has no place yet, which a note tells.
    if (outcome.dry_run && !outcome.no_undo) return "";
    return Paragraph(outcome.dry_run
                         ? "Nothing would be kept of what is overwritten (--no-undo)."
                         : "Nothing was kept of what was overwritten (--no-undo): this cannot be "
                           "taken back.");
  }
  const std::string name = Printable(outcome.undo_file);
  if (outcome.dry_run) {
    return Paragraph(absl::StrCat("What is overwritten would be kept in ", name,
                                  ", written before the image is touched."));
  }
  return CommandParagraph(
      absl::StrCat("What was overwritten is kept in ", name, ". To take the repair back:"),
      CommandLine("undo", {outcome.undo_file, path}));
}

std::string FixedText(const RepairResult& result) {
  if (result.leaks_fixed == 0 && result.corruptions_fixed == 0) return "";
  return absl::StrCat("\nThe following inconsistencies were found and repaired:\n\n    ",
                      result.leaks_fixed, " leaked clusters\n    ", result.corruptions_fixed,
                      " corruptions\n\nDouble checking the fixed image now...\n");
}

std::string Headline(const RepairOutcome& outcome, const RepairTextOptions& options) {
  const RepairResult& result = outcome.result;
  uint64_t writes = 0, bytes = 0;
  ForEachWrite(result.plan, [&](uint64_t, const PlannedWrite& write) {
    ++writes;
    bytes += write.length_bytes;
  });
  const std::string mode = absl::StrCat("--repair=", NameOf(outcome.options.mode));
  const std::string size =
      absl::StrCat(Counted(writes, "write", "writes"), ", ", FormatBytes(bytes));
  std::string said;
  if (outcome.dry_run && outcome.nothing_to_write()) {
    said = absl::StrCat(mode, " would change nothing.");
  } else if (outcome.dry_run) {
    said = absl::StrCat("the plan of ", mode, " (", size, "). Nothing was written.");
  } else if (outcome.nothing_to_write()) {
    said = absl::StrCat(mode, " changed nothing.");
  } else if (!result.changed) {
    said = absl::StrCat(mode, " could not begin. Nothing was changed.");
  } else if (!result.status.ok()) {
    said = absl::StrCat(mode, " stopped before its end. The image is changed in part.");
  } else {
    said = absl::StrCat(mode, " is done (", size, ").");
  }
  return absl::StrCat(Wrapped(absl::StrCat(Printable(options.name), ": ", said), 2, 0), "\n");
}

}  // namespace

std::string RepairText(const RepairOutcome& outcome, const RepairTextOptions& options) {
  const RepairResult& result = outcome.result;
  std::string text;
  for (const std::string& note : outcome.notes) {
    absl::StrAppend(&text, Wrapped(absl::StrCat("Note: ", Printable(note)), 2, 0), "\n");
  }
  std::string left = LeftsText(outcome, RepairStatus::kDeclined, "Left as it is:", options.colour);
  if (result.status.ok()) {
    absl::StrAppend(&left,
                    LeftsText(outcome, RepairStatus::kFailed,
                              "Still there, although it should be repaired:", options.colour));
  }
  absl::StrAppend(&left, HeldBackText(outcome, options.path));
  const bool clean = result.before.verdict == Verdict::kClean;
  if (outcome.nothing_to_write() && left.empty() && clean) return text;
  absl::StrAppend(&text, Headline(outcome, options));
  const bool written = outcome.dry_run || (result.changed && result.status.ok());
  if (written && !outcome.nothing_to_write()) {
    absl::StrAppend(&text, WritesText(outcome, options.colour), SizeText(outcome));
  }
  absl::StrAppend(&text, left);
  if (outcome.dry_run || result.changed) absl::StrAppend(&text, UndoText(outcome, options.path));
  if (outcome.dry_run && !outcome.nothing_to_write()) {
    absl::StrAppend(&text, CommandParagraph("To do this:", outcome.command_line));
  } else if (!result.status.ok()) {
    absl::StrAppend(&text, CommandParagraph("To start the repair again:", outcome.command_line));
  }
  return absl::StrCat(text, FixedText(result));
}

}  // namespace qcow2check
