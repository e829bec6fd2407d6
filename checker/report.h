// The result of a check: everything that the text and JSON outputs, and the repair, are made from.
#ifndef QCOW2CHECK_CHECKER_REPORT_H_
#define QCOW2CHECK_CHECKER_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/finding.h"
#include "common/guest_ranges.h"

namespace qcow2check {

enum class Verdict {
  kClean,
  kLeaks,
  kCorrupt,
  kIncomplete,  // something could not be examined
  kLimitExceeded,
  kLocked,
  kNotQcow2,
  kUnsupported,
};
absl::string_view NameOf(Verdict verdict);

// Totals as qemu-img counts them.
struct Totals {
  uint64_t check_errors = 0;
  uint64_t corruptions = 0;
  uint64_t leaks = 0;
};

// Numbers of the active disk, as qemu-img defines them.
struct Statistics {
  uint64_t total_clusters = 0;
  uint64_t allocated_clusters = 0;
  uint64_t fragmented_clusters = 0;
  uint64_t compressed_clusters = 0;
  uint64_t image_end_offset = 0;
};

struct SkippedPart {
  std::string what;
  std::string why;
};

// What was examined. The numbers are of distinct structures: a table that a hundred snapshots
// share is one.
struct Coverage {
  uint64_t l1_tables = 0;
  uint64_t l2_tables = 0;
  uint64_t refcount_blocks = 0;
  uint64_t snapshots = 0;
  uint64_t bitmaps = 0;
  uint64_t compressed_clusters_decompressed = 0;
  uint64_t chain_layers = 0;
  uint64_t reads = 0;
  uint64_t bytes_read = 0;
  std::vector<SkippedPart> skipped;

  bool complete() const { return skipped.empty(); }
};

struct CodeTotal {
  FindingCode code{};
  uint64_t findings = 0;  // after merging neighbours
  uint64_t count = 0;     // what they add to their total, or instances for codes that add nothing
  uint64_t clusters = 0;
};

// Unreferenced clusters that no repair may free, and why.
struct HeldBack {
  uint64_t clusters = 0;
  uint64_t bytes = 0;
  std::string why;
};

// The image in a few words.
struct ImageSummary {
  uint32_t version = 0;
  uint64_t cluster_size = 0;
  uint64_t virtual_size_bytes = 0;
  uint32_t refcount_bits = 0;
  bool extended_l2 = false;
  bool encrypted = false;
  bool external_data_file = false;
  uint64_t snapshots = 0;
  uint64_t bitmaps = 0;
  std::string backing_name;  // as it is in the image
  std::string backing_format;
  std::string data_file_name;
};

struct Report {
  Verdict verdict = Verdict::kClean;
  // Empty (version 0) if the header could not be understood.
  ImageSummary image;
  Totals totals;
  Statistics statistics;
  DataState data = DataState::kNone;
  std::vector<GuestRange> lost_guest_ranges;
  uint64_t lost_guest_bytes = 0;
  Coverage coverage;
  // Ordered by host offset, then code. At most CheckOptions::max_findings for each code;
  // code_totals tells how many there were.
  std::vector<Finding> findings;
  std::vector<CodeTotal> code_totals;  // ordered by code; only codes that occurred
  HeldBack held_back;
};

// The order of findings in a report: by host offset, then code, then guest offset.
bool ComesBefore(const Finding& a, const Finding& b);

// Adds a finding about something outside the image's own metadata (its backing chain, a second
// look) to a finished report: totals, data state and verdict follow.
void AddToReport(Report& report, Finding finding);

// Whether the check came to its end with nothing left out. Only then does DataState::kNone mean
// that the guest's data is intact.
bool ExaminedAll(const Report& report);

// As qemu-img's: 0 consistent, 1 could not be completed, 2 corruption, 3 leaks only, 63 not a
// qcow2 image.
int ExitCodeOf(const Report& report);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_REPORT_H_
