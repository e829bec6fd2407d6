// The slow, obvious checker: the same questions as checker/ asks, answered in the simplest way that
// can be right, to compare the real one with.
//
// Written from the format and from what qemu-img counts; shares only common/ with the real checker.
// The whole file is in memory; every L2 table is walked once for each L1 entry that leads to it;
// owners and counts are plain maps. Time grows with what the tables claim: for small images only.
//
// Left out, because they are judgements rather than facts (the comparison leaves out, or skips,
// images where the real checker makes them): whether a cluster is an L2 table at all or was lost or
// torn, lost L1 tables, a wrong cluster size, what an orphan was; and the rules for names, feature
// tables and header extensions that no table depends on.
#ifndef QCOW2CHECK_TESTS_REFERENCE_CHECKER_H_
#define QCOW2CHECK_TESTS_REFERENCE_CHECKER_H_

#include <compare>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "common/finding.h"

namespace qcow2check::testing {

// A cluster whose stored refcount is not what it should be: `expected` is cut at what the width can
// hold.
struct RefcountMismatch {
  uint64_t cluster = 0;
  uint64_t stored = 0;
  uint64_t expected = 0;
  friend auto operator<=>(const RefcountMismatch&, const RefcountMismatch&) = default;
};

struct ReferenceReport {
  // False if the header does not allow to walk anything; then only `counts` says something.
  bool walked = false;
  bool refcounts_readable = true;
  uint64_t cluster_size = 0;
  uint64_t l2_entry_bytes = 8;

  // What each code adds to its total; only codes that occurred. Leaks are all kLeakedCluster.
  std::map<FindingCode, uint64_t> counts;
  // Where: the offset of the table entry, or of the cluster that is used twice.
  std::set<std::pair<FindingCode, uint64_t>> places;

  std::vector<uint64_t> expected_refcounts;  // by cluster of the file
  std::vector<uint64_t> stored_refcounts;
  std::set<RefcountMismatch> mismatches;  // also behind the end of the file
  std::set<uint64_t> orphans;             // stored, but not referenced

  uint64_t total_clusters = 0;
  uint64_t allocated_clusters = 0;
  uint64_t fragmented_clusters = 0;
  uint64_t compressed_clusters = 0;
  uint64_t image_end_offset = 0;

  uint64_t corruptions = 0;
  uint64_t leaks = 0;
};

// The codes that ReferenceCheck computes; it says nothing about others.
absl::Span<const FindingCode> ReferenceCodes();

ReferenceReport ReferenceCheck(const std::vector<uint8_t>& bytes);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_REFERENCE_CHECKER_H_
