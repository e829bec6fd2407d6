#include "checker/refcount_findings.h"

#include "common/checked_math.h"

namespace qcow2check {

void RefcountFindings::Add(FindingCode code, uint64_t cluster, uint64_t stored, uint64_t expected,
                           uint64_t count, PartNotes& notes) {
  const bool continues = clusters_ != 0 && code_ == code && stored_ == stored &&
                         expected_ == expected && first_cluster_ + clusters_ == cluster;
  if (!continues) {
    End(notes);
    code_ = code;
    first_cluster_ = cluster;
    stored_ = stored;
    expected_ = expected;
    count_ = count;
  }
  ++clusters_;
}

void RefcountFindings::End(PartNotes& notes) {
  if (clusters_ == 0) return;
  notes.Add({.code = code_,
             .structure = Structure::kRefcountBlock,
             .host_offset = HostOffset{first_cluster_ << cluster_bits_},
             .length_bytes = clusters_ << cluster_bits_,
             .clusters = clusters_,
             .count = SaturatingMultiply(clusters_, count_),
             .stored = stored_,
             .expected = expected_});
  clusters_ = 0;
}

}  // namespace qcow2check
