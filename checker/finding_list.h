// Where findings go: merges neighbours, counts everything, keeps a bounded number of each code.
#ifndef QCOW2CHECK_CHECKER_FINDING_LIST_H_
#define QCOW2CHECK_CHECKER_FINDING_LIST_H_

#include <cstdint>
#include <vector>

#include "checker/report.h"
#include "common/finding.h"
#include "common/guest_ranges.h"

namespace qcow2check {

class FindingList {
 public:
  explicit FindingList(uint64_t max_per_code);

  // Records a finding. One that continues the last finding of its code (same values, next bytes
  // of the file, next guest bytes) is merged into it.
  void Add(Finding finding);

  // Adds all of `next` as if its findings had been added here one by one. `next` keeps at least one
  // finding of each code, and as many as this list.
  void Absorb(FindingList next);

  // A copy that lists at most so many of each code: what a list with that limit would hold. Nothing
  // can be added to it.
  FindingList FirstOf(uint64_t max_per_code) const;

  uint64_t CountOf(FindingCode code) const { return TotalOf(code).count; }
  bool Has(FindingCode code) const { return TotalOf(code).findings != 0; }
  const CodeTotal& TotalOf(FindingCode code) const {
    return totals_[static_cast<size_t>(code) - 1];
  }

  // The findings kept so far, for passes that add what they know (owners, probable causes).
  // Unordered; `count`, `clusters` and guest ranges must not be changed.
  std::vector<Finding>& findings() { return findings_; }
  const std::vector<Finding>& findings() const { return findings_; }

  // Moves findings, totals, data state and lost guest ranges (cut at `virtual_size_bytes`) into
  // the report.
  void MoveTo(Report& report, uint64_t virtual_size_bytes);

 private:
  struct LastOfCode {
    size_t position = 0;  // in findings_, if it was kept
    bool kept = false;
    Finding finding;  // for merging; without owners and detail if not kept
  };

  // Lists a finding: as a part of the last one of its code, or as the next if there is room.
  void List(Finding finding);

  uint64_t max_per_code_;
  std::vector<Finding> findings_;
  std::vector<CodeTotal> totals_;
  std::vector<uint64_t> kept_;
  std::vector<LastOfCode> last_;
  GuestRanges lost_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_FINDING_LIST_H_
