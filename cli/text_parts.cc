#include "cli/text_parts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/format_bytes.h"
#include "cli/printable.h"
#include "cli/wrapped.h"

namespace qcow2check {
namespace {

constexpr size_t kOwnersShown = 4;

bool IsExactInWords(uint64_t bytes) {
  int unit = 0;
  while (unit < 60 && (bytes >> (unit + 10)) != 0) unit += 10;
  const uint64_t below_unit = bytes & ((uint64_t{1} << unit) - 1);
  // At most two decimals: a quarter is the smallest binary fraction that has no more.
  return unit == 0 || below_unit % (uint64_t{1} << (unit - 2)) == 0;
}

std::string TimesText(uint64_t count) {
  return count == 1 ? "once" : absl::StrCat(count, " times");
}

std::string OwnersText(const Finding& finding) {
  if (finding.owners.empty()) return "";
  std::vector<std::string> owners;
  for (const Owner& owner : finding.owners) {
    if (owners.size() == kOwnersShown) break;
    std::string text(WordsOf(owner.structure));
    if (owner.guest_offset)
      absl::StrAppendFormat(&text, " (guest 0x%x)", owner.guest_offset->bytes);
    if (owner.snapshot) absl::StrAppend(&text, " of snapshot ", *owner.snapshot);
    owners.push_back(std::move(text));
  }
  if (finding.owners.size() > kOwnersShown) {
    owners.push_back(absl::StrCat(finding.owners.size() - kOwnersShown, " more"));
  }
  // Of merged clusters only the first one's owners are known.
  return absl::StrCat(
      finding.clusters > 1 && !finding.target ? "; the first is used by " : "; used by ",
      absl::StrJoin(owners, " and "));
}

std::string EntryText(const Finding& finding) {
  if (!finding.target || !finding.l1_index) return "";
  if (!finding.l2_index) return absl::StrCat(" (L1 entry ", *finding.l1_index, ")");
  return absl::StrCat(" (L1 entry ", *finding.l1_index, ", L2 entry ", *finding.l2_index, ")");
}

std::string RefcountText(const Finding& finding) {
  const RepairAction action = InfoOf(finding.code).action;
  if (action != RepairAction::kRaiseRefcount && action != RepairAction::kLowerRefcount) return "";
  if (!finding.stored || !finding.expected || finding.target) return "";
  return absl::StrCat(": refcount ", *finding.stored,
                      *finding.expected == 0
                          ? ", never referenced"
                          : absl::StrCat(", referenced ", TimesText(*finding.expected)));
}

}  // namespace

std::string Coloured(absl::string_view text, absl::string_view colour, bool on) {
  return on ? absl::StrCat(colour, text, kPlain) : std::string(text);
}

std::string CodeParagraph(FindingCode code, absl::string_view words, bool colour) {
  const FindingCodeInfo& info = InfoOf(code);
  const absl::string_view paint = info.severity == Severity::kCorruption ? kRed
                                  : info.severity == Severity::kInfo     ? kPlain
                                                                         : kYellow;
  const size_t used = 2 + info.name.size();
  return absl::StrCat("  ", Coloured(info.name, paint, colour),
                      used < kCodeIndent ? std::string(kCodeIndent - used, ' ')
                                         : "\n" + std::string(kCodeIndent, ' '),
                      Wrapped(words, kCodeIndent, kCodeIndent), "\n");
}

std::string Item(absl::string_view text, size_t indent) {
  return absl::StrCat(std::string(indent, ' '), "- ", Wrapped(text, indent + 2, indent + 2), "\n");
}

std::string RangeText(uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  if (end > offset && IsExactInWords(offset) && IsExactInWords(end)) {
    return absl::StrCat(offset == 0 ? "0" : FormatBytes(offset), " to ", FormatBytes(end));
  }
  return absl::StrFormat("0x%x-0x%x (%s at %s)", offset, end - 1, FormatBytes(length),
                         FormatBytes(offset));
}

std::string RangesParagraph(absl::string_view what, const std::vector<GuestRange>& ranges) {
  if (ranges.empty()) return "";
  uint64_t bytes = 0;
  std::vector<std::string> words;
  for (const GuestRange& range : ranges) {
    bytes = SaturatingAdd(bytes, range.length_bytes);
    if (words.size() == kRangesShown) continue;
    words.push_back(RangeText(range.offset_bytes, range.length_bytes));
  }
  if (ranges.size() > kRangesShown) {
    words.push_back(
        absl::StrCat("and ", FormatCount(ranges.size() - kRangesShown), " more ranges"));
  }
  return absl::StrCat(
      "\n  ",
      Wrapped(absl::StrCat(what, " (", FormatBytes(bytes), "): ", absl::StrJoin(words, ", ")), 4,
              2),
      "\n");
}

std::string PlaceText(const Finding& finding) {
  std::string text;
  if (finding.host_offset) {
    absl::StrAppendFormat(&text, "at 0x%x", finding.host_offset->bytes);
    if (finding.clusters > 1 && !finding.target) {
      absl::StrAppendFormat(&text, "-0x%x (%s clusters, %s)",
                            finding.host_offset->bytes + finding.length_bytes - 1,
                            FormatCount(finding.clusters), FormatBytes(finding.length_bytes));
    }
    absl::StrAppend(&text, EntryText(finding));
  }
  if (finding.target) absl::StrAppendFormat(&text, ", points to 0x%x", finding.target->bytes);
  if (finding.guest_offset && finding.guest_length_bytes != 0) {
    absl::StrAppend(&text, ", guest ",
                    RangeText(finding.guest_offset->bytes, finding.guest_length_bytes));
  }
  if (finding.snapshot) absl::StrAppend(&text, ", snapshot ", *finding.snapshot);
  absl::StrAppend(&text, RefcountText(finding), OwnersText(finding));
  if (!finding.detail.empty()) {
    absl::StrAppend(&text, text.empty() ? "" : "; ", Printable(finding.detail));
  }
  return text;
}

}  // namespace qcow2check
