#include "tests/reference_compare.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checker/check.h"
#include "common/memory_file.h"

namespace qcow2check::testing {
namespace {

using Places = std::set<std::pair<FindingCode, uint64_t>>;

absl::string_view NameOf(FindingCode code) { return InfoOf(code).name; }

// The reference does not tell leaks that are waste from leaks that may be lost data.
FindingCode Merged(FindingCode code) {
  return code == FindingCode::kLeakSuspicious ? FindingCode::kLeakedCluster : code;
}

bool IsComputed(FindingCode code) {
  const auto codes = ReferenceCodes();
  return std::find(codes.begin(), codes.end(), Merged(code)) != codes.end();
}

template <typename T>
void CompareNumber(absl::string_view what, T real, T reference, std::string& differences) {
  if (real == reference) return;
  absl::StrAppend(&differences, what, ": ", real, ", reference ", reference, "\n");
}

template <typename Set, typename Format>
void CompareSets(const Set& real, const Set& reference, Format format, std::string& differences) {
  for (const auto& one : real) {
    if (reference.count(one) == 0) absl::StrAppend(&differences, "only real: ", format(one), "\n");
  }
  for (const auto& one : reference) {
    if (real.count(one) == 0) absl::StrAppend(&differences, "only reference: ", format(one), "\n");
  }
}

std::map<FindingCode, uint64_t> CountsOf(const Report& report) {
  std::map<FindingCode, uint64_t> counts;
  for (const CodeTotal& total : report.code_totals) {
    if (IsComputed(total.code)) counts[Merged(total.code)] += total.count;
  }
  return counts;
}

// Bytes of one table entry of the finding; 0 if the finding is not about entries of a table.
uint64_t EntryBytes(const Finding& finding, const ReferenceReport& reference) {
  switch (finding.structure) {
    case Structure::kL1Table:
    case Structure::kSnapshotL1Table:
    case Structure::kRefcountTable:
    case Structure::kBitmapTable:
      return 8;
    case Structure::kL2Table:
      return reference.l2_entry_bytes;
    default:
      return 0;
  }
}

bool IsAboutCluster(FindingCode code) {
  return code == FindingCode::kCrossLinkedData || code == FindingCode::kCrossLinkedL2 ||
         code == FindingCode::kDataOnMetadata || code == FindingCode::kMetadataOverlap;
}

// The places of all findings, entry by entry; the codes are those of which the reference has some.
Places PlacesOf(const Report& report, const ReferenceReport& reference) {
  std::set<FindingCode> with_places;
  for (const auto& [code, place] : reference.places) with_places.insert(code);
  Places places;
  for (const Finding& finding : report.findings) {
    if (with_places.count(finding.code) == 0) continue;
    const uint64_t unit =
        IsAboutCluster(finding.code) ? finding.length_bytes : EntryBytes(finding, reference);
    if (unit == 0) continue;
    for (uint64_t at = 0; at < finding.length_bytes; at += unit) {
      places.emplace(finding.code, finding.host_offset->bytes + at);
    }
  }
  return places;
}

bool IsMismatch(const Finding& finding) {
  switch (finding.code) {
    case FindingCode::kRefcountTooLow:
    case FindingCode::kRefcountZeroInUse:
    case FindingCode::kRefcountTooHigh:
    case FindingCode::kRefcountPastEnd:
    case FindingCode::kLeakedCluster:
    case FindingCode::kLeakSuspicious:
      return true;
    case FindingCode::kRefcountLazy:
      return finding.structure == Structure::kRefcountBlock;  // otherwise a COPIED flag
    default:
      return false;
  }
}

std::set<RefcountMismatch> MismatchesOf(const Report& report, uint64_t cluster_size) {
  std::set<RefcountMismatch> mismatches;
  for (const Finding& finding : report.findings) {
    if (!IsMismatch(finding)) continue;
    for (uint64_t i = 0; i < finding.clusters; ++i) {
      mismatches.insert({finding.host_offset->bytes / cluster_size + i, finding.stored.value_or(0),
                         finding.expected.value_or(0)});
    }
  }
  return mismatches;
}

// Of clusters behind the end that have a refcount, the check lists so many, and counts the rest
// with the last of them.
void DropUnlisted(const Report& report, uint64_t cluster_size,
                  std::set<RefcountMismatch>& mismatches) {
  for (const Finding& finding : report.findings) {
    if (finding.code != FindingCode::kRefcountPastEnd || finding.count <= finding.clusters)
      continue;
    const uint64_t next = finding.host_offset->bytes / cluster_size + finding.clusters;
    auto end = mismatches.lower_bound({next, 0, 0});
    const auto begin = end;
    for (uint64_t left = finding.count - finding.clusters; left > 0; --left) {
      if (end == mismatches.end()) break;
      ++end;
    }
    mismatches.erase(begin, end);
  }
}

void CompareTotals(const Report& report, const ReferenceReport& reference,
                   std::string& differences) {
  Totals others;  // of codes that the reference does not compute
  for (const CodeTotal& total : report.code_totals) {
    if (IsComputed(total.code)) continue;
    const Tally tally = InfoOf(total.code).tally;
    if (tally == Tally::kCorruptions) others.corruptions += total.count;
    if (tally == Tally::kLeaks) others.leaks += total.count;
  }
  CompareNumber("corruptions", report.totals.corruptions - others.corruptions,
                reference.corruptions, differences);
  CompareNumber("leaks", report.totals.leaks - others.leaks, reference.leaks, differences);
}

void CompareStatistics(const Statistics& real, const ReferenceReport& reference,
                       std::string& differences) {
  CompareNumber("total clusters", real.total_clusters, reference.total_clusters, differences);
  CompareNumber("allocated clusters", real.allocated_clusters, reference.allocated_clusters,
                differences);
  CompareNumber("fragmented clusters", real.fragmented_clusters, reference.fragmented_clusters,
                differences);
  CompareNumber("compressed clusters", real.compressed_clusters, reference.compressed_clusters,
                differences);
  CompareNumber("image end offset", real.image_end_offset, reference.image_end_offset, differences);
}

std::string DigestOf(const Finding& finding) {
  const auto number = [](const auto& value) { return value ? absl::StrCat(*value) : "-"; };
  const auto offset = [](const auto& value) { return value ? absl::StrCat(value->bytes) : "-"; };
  std::vector<std::string> owners;
  for (const Owner& owner : finding.owners) {
    owners.push_back(absl::StrCat(static_cast<int>(owner.structure), "@", owner.host_offset.bytes,
                                  " entry ", offset(owner.entry_offset), " guest ",
                                  offset(owner.guest_offset), " snapshot ",
                                  number(owner.snapshot)));
  }
  return absl::StrJoin(
      {std::string(NameOf(finding.code)), qcow2check::MessageOf(finding),
       absl::StrCat("structure ", static_cast<int>(finding.structure), " at ",
                    offset(finding.host_offset), "+", finding.length_bytes),
       absl::StrCat("clusters ", finding.clusters, " count ", finding.count),
       absl::StrCat("guest ", offset(finding.guest_offset), "+", finding.guest_length_bytes),
       absl::StrCat("l1 ", number(finding.l1_index), " l2 ", number(finding.l2_index)),
       absl::StrCat("snapshot ", number(finding.snapshot), " target ", offset(finding.target)),
       absl::StrCat("stored ", number(finding.stored), " expected ", number(finding.expected)),
       absl::StrCat("confidence ", static_cast<int>(finding.confidence)),
       absl::StrCat("owners ", absl::StrJoin(owners, ", "))},
      "; ");
}

}  // namespace

Report CheckBytes(const std::vector<uint8_t>& bytes, uint64_t max_findings) {
  return CheckImage(MemoryFile(bytes), {.max_findings = max_findings});
}

std::string WhyNotComparable(const Report& report) {
  for (const CodeTotal& total : report.code_totals) {
    switch (total.code) {
      case FindingCode::kHeaderLost:
      case FindingCode::kL2TableLost:
      case FindingCode::kL2TableTorn:
      case FindingCode::kL1Lost:
      case FindingCode::kClusterBitsSuspect:
      case FindingCode::kRefcountBlockGarbage:
      case FindingCode::kLimitReached:
        return std::string(NameOf(total.code));
      default:
        break;
    }
  }
  for (const Finding& finding : report.findings) {
    if (finding.code == FindingCode::kSnapshotTableInvalid &&
        finding.confidence == Confidence::kProbable) {
      return "snapshot table probably lost";
    }
  }
  return "";
}

std::string Differences(const Report& report, const ReferenceReport& reference) {
  std::string differences;
  const std::map<FindingCode, uint64_t> real_counts = CountsOf(report);
  if (!reference.walked) {
    // What else the header says then is of no use.
    for (const auto& [code, count] : reference.counts) {
      if (real_counts.count(code) == 0) absl::StrAppend(&differences, "not ", NameOf(code), "\n");
    }
    return differences;
  }
  for (const FindingCode code : ReferenceCodes()) {
    const auto real = real_counts.find(code);
    const auto expected = reference.counts.find(code);
    const bool listed = real != real_counts.end();
    const bool wanted = expected != reference.counts.end();
    if (listed != wanted || (listed && real->second != expected->second)) {
      absl::StrAppend(&differences, NameOf(code), ": ",
                      listed ? absl::StrCat(real->second) : "none", ", reference ",
                      wanted ? absl::StrCat(expected->second) : "none", "\n");
    }
  }
  CompareTotals(report, reference, differences);
  CompareStatistics(report.statistics, reference, differences);
  CompareSets(
      PlacesOf(report, reference), reference.places,
      [](const auto& place) {
        return absl::StrFormat("%s at 0x%x", NameOf(place.first), place.second);
      },
      differences);
  std::set<RefcountMismatch> mismatches = reference.mismatches;
  DropUnlisted(report, reference.cluster_size, mismatches);
  CompareSets(
      MismatchesOf(report, reference.cluster_size), mismatches,
      [](const RefcountMismatch& one) {
        return absl::StrFormat("cluster %d stored %d expected %d", one.cluster, one.stored,
                               one.expected);
      },
      differences);
  return differences;
}

std::string Digest(const Report& report, bool findings) {
  std::string text = absl::StrFormat(
      "verdict %s data %s totals %d %d %d lost %d\n", qcow2check::NameOf(report.verdict),
      qcow2check::NameOf(report.data), report.totals.check_errors, report.totals.corruptions,
      report.totals.leaks, report.lost_guest_bytes);
  const Statistics& statistics = report.statistics;
  absl::StrAppendFormat(&text, "clusters %d %d %d %d end %d\n", statistics.total_clusters,
                        statistics.allocated_clusters, statistics.fragmented_clusters,
                        statistics.compressed_clusters, statistics.image_end_offset);
  for (const CodeTotal& total : report.code_totals) {
    absl::StrAppend(&text, NameOf(total.code), " ", total.findings, " ", total.count, " ",
                    total.clusters, "\n");
  }
  absl::StrAppend(&text, "held back ", report.held_back.clusters, " ", report.held_back.why, "\n");
  for (const GuestRange& range : report.lost_guest_ranges) {
    absl::StrAppend(&text, "lost ", range.offset_bytes, "+", range.length_bytes, "\n");
  }
  if (!findings) return text;
  for (const Finding& finding : report.findings) absl::StrAppend(&text, DigestOf(finding), "\n");
  for (const SkippedPart& part : report.coverage.skipped) {
    absl::StrAppend(&text, "skipped ", part.what, ": ", part.why, "\n");
  }
  return text;
}

}  // namespace qcow2check::testing
