#include "cli/explain.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/wrapped.h"

namespace qcow2check {

namespace {

std::string RepairWords(const FindingCodeInfo& info) {
  const std::string words = absl::StrCat(NameOf(info.action), ", ", NameOf(info.safety));
  if (info.action == RepairAction::kNoAction) return words;
  return absl::StrCat(words, "; `qcow2check --repair --dry-run IMAGE` prints what it would write");
}

}  // namespace

std::string ExplainCode(const FindingCodeInfo& info) {
  constexpr size_t kIndent = 18;
  const auto row = [](absl::string_view label, absl::string_view text) {
    return absl::StrFormat("  %-16s%s\n", label, Wrapped(text, kIndent, kIndent));
  };
  return absl::StrCat(info.name, " (", NameOf(info.severity), ", guest data: ", NameOf(info.data),
                      ")\n\n", row("What is wrong", absl::StrCat(info.sentence, ".")),
                      row("What it means", info.meaning), row("What to do", info.remedy),
                      row("Repair", RepairWords(info)));
}

std::string ListCodes() {
  std::string text;
  for (const FindingCodeInfo& info : AllFindingCodes()) {
    absl::StrAppend(&text, absl::StrFormat("%3d  %-36s %-10s  %s\n", static_cast<int>(info.code),
                                           info.name, NameOf(info.severity), info.sentence));
  }
  return text;
}

std::string CodesAsMarkdown() {
  std::string text =
      "# Finding codes\n\n"
      "Made from the table in `common/finding_codes.inc` by `qcow2check --list-codes=markdown`; "
      "do not edit.\n"
      "`qcow2check explain CODE` prints the same for one code.\n";
  for (const FindingCodeInfo& info : AllFindingCodes()) {
    absl::StrAppend(&text, "\n## ", info.name, "\n\n", static_cast<int>(info.code), " | ",
                    NameOf(info.severity), " | guest data: ", NameOf(info.data),
                    " | repair: ", NameOf(info.action), " (", NameOf(info.safety), ")\n\n",
                    info.sentence, ".\n\n", info.meaning, "\n\n", info.remedy, "\n");
  }
  return text;
}

}  // namespace qcow2check
