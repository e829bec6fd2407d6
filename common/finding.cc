#include "common/finding.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"

namespace qcow2check {
namespace {

using enum Severity;
using enum Tally;
using enum RepairAction;
using enum RepairSafety;

// Spelled out: RepairAction and DataState could not both be imported whole.
constexpr DataState kNone = DataState::kNone;
constexpr DataState kAtRisk = DataState::kAtRisk;
constexpr DataState kAmbiguous = DataState::kAmbiguous;
constexpr DataState kLost = DataState::kLost;

constexpr FindingCodeInfo kCodes[] = {
#define FINDING(id, name, code, severity, tally, data, action, safety, sentence, meaning, remedy) \
  {FindingCode::k##name, code, severity, tally, data, action, safety, sentence, meaning, remedy},
#include "common/finding_codes.inc"
#undef FINDING
};

constexpr bool IdsAreDense() {
  for (size_t i = 0; i < std::size(kCodes); ++i) {
    if (static_cast<size_t>(kCodes[i].code) != i + 1) return false;
  }
  return true;
}
static_assert(IdsAreDense(), "rows of finding_codes.inc must be in order of id, without gaps");

constexpr bool NamesAreUnique() {
  for (size_t i = 0; i < std::size(kCodes); ++i) {
    for (size_t j = i + 1; j < std::size(kCodes); ++j) {
      if (kCodes[i].name == kCodes[j].name) return false;
    }
  }
  return true;
}
static_assert(NamesAreUnique());

struct StructureNames {
  absl::string_view name;
  absl::string_view words;
};
constexpr std::array<StructureNames, 17> kStructures = {{
    {"image", "image"},
    {"header", "header"},
    {"header-extension", "header extension"},
    {"l1-table", "L1 table"},
    {"l2-table", "L2 table"},
    {"refcount-table", "refcount table"},
    {"refcount-block", "refcount block"},
    {"snapshot-table", "snapshot table"},
    {"snapshot-l1-table", "snapshot L1 table"},
    {"bitmap-directory", "bitmap directory"},
    {"bitmap-table", "bitmap table"},
    {"bitmap-data", "bitmap data"},
    {"luks-header", "LUKS header"},
    {"data-cluster", "data cluster"},
    {"compressed-cluster", "compressed cluster"},
    {"backing-file", "backing file"},
    {"data-file", "external data file"},
}};
static_assert(static_cast<size_t>(Structure::kDataFile) + 1 == kStructures.size());

}  // namespace

absl::Span<const FindingCodeInfo> AllFindingCodes() { return kCodes; }

const FindingCodeInfo& InfoOf(FindingCode code) { return kCodes[static_cast<size_t>(code) - 1]; }

const FindingCodeInfo* FindFindingCode(absl::string_view name) {
  const auto* found = std::find_if(std::begin(kCodes), std::end(kCodes),
                                   [name](const auto& row) { return row.name == name; });
  return found == std::end(kCodes) ? nullptr : found;
}

absl::string_view NameOf(Severity severity) {
  static constexpr absl::string_view kNames[] = {"corruption", "leak", "warning", "info"};
  return kNames[static_cast<size_t>(severity)];
}

absl::string_view NameOf(DataState state) {
  static constexpr absl::string_view kNames[] = {"intact", "at-risk", "ambiguous", "lost"};
  return kNames[static_cast<size_t>(state)];
}

absl::string_view NameOf(RepairAction action) {
  static constexpr absl::string_view kNames[] = {"none",
                                                 "raise-refcount",
                                                 "lower-refcount",
                                                 "rebuild-refcounts",
                                                 "widen-refcounts",
                                                 "set-copied-flag",
                                                 "clear-reserved-bits",
                                                 "rewrite-entry",
                                                 "relink",
                                                 "copy-out",
                                                 "hold-back",
                                                 "rewrite-snapshot-entry",
                                                 "drop-bitmap",
                                                 "clear-dirty-bit",
                                                 "clear-corrupt-bit"};
  return kNames[static_cast<size_t>(action)];
}

absl::string_view NameOf(RepairSafety safety) {
  static constexpr absl::string_view kNames[] = {"lossless", "lossy", "manual"};
  return kNames[static_cast<size_t>(safety)];
}

absl::string_view NameOf(Structure structure) {
  return kStructures[static_cast<size_t>(structure)].name;
}

absl::string_view WordsOf(Structure structure) {
  return kStructures[static_cast<size_t>(structure)].words;
}

std::string MessageOf(const Finding& finding) {
  const absl::string_view sentence = InfoOf(finding.code).sentence;
  if (finding.detail.empty()) return absl::StrCat(sentence, ".");
  return absl::StrCat(sentence, ": ", finding.detail, ".");
}

}  // namespace qcow2check
