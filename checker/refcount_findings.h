// Findings about wrong refcounts, made for a run of clusters at a time: to make one for each of
// millions, and to merge them, would cost more than the comparison.
#ifndef QCOW2CHECK_CHECKER_REFCOUNT_FINDINGS_H_
#define QCOW2CHECK_CHECKER_REFCOUNT_FINDINGS_H_

#include <cstdint>

#include "checker/part_notes.h"
#include "common/finding.h"

namespace qcow2check {

class RefcountFindings {
 public:
  explicit RefcountFindings(int cluster_bits) : cluster_bits_(cluster_bits) {}

  // Adds a finding about one cluster to `notes`, at the latest with the next End. `count`: what it
  // adds to its total, the same for the same values.
  void Add(FindingCode code, uint64_t cluster, uint64_t stored, uint64_t expected, uint64_t count,
           PartNotes& notes);
  // Before anything else is added to `notes`, and when they are complete.
  void End(PartNotes& notes);

 private:
  const int cluster_bits_;
  // Clusters next to each other with the same to be said.
  FindingCode code_{};
  uint64_t first_cluster_ = 0;
  uint64_t clusters_ = 0;
  uint64_t stored_ = 0;
  uint64_t expected_ = 0;
  uint64_t count_ = 0;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_REFCOUNT_FINDINGS_H_
