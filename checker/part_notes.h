// What one part of a pass has to say, made apart from the other parts: parts run on several
// threads, and CheckState::Absorb adds their notes in the order of the parts, so that the report
// does not depend on who was faster.
#ifndef QCOW2CHECK_CHECKER_PART_NOTES_H_
#define QCOW2CHECK_CHECKER_PART_NOTES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "checker/finding_list.h"
#include "checker/report.h"
#include "common/image_file.h"

namespace qcow2check {

struct PartNotes {
  explicit PartNotes(uint64_t max_findings_in) : max_findings(max_findings_in) {}

  void Add(Finding finding);
  void Skip(std::string what, std::string why);

  uint64_t max_findings;
  std::unique_ptr<FindingList> findings;  // none as long as there is nothing to say
  std::vector<SkippedPart> skipped;       // at most kMostSkippedListed and one
  uint64_t reads = 0;
  uint64_t bytes_read = 0;
};

// Parts that were not examined and are listed one by one.
inline constexpr size_t kMostSkippedListed = 1000;

// Reads metadata. Sectors that cannot be read become zeros, a finding and a gap in the coverage;
// false if there were any.
bool ReadMetadata(const ImageFile& file, HostOffset offset, absl::Span<uint8_t> dst,
                  Structure structure, PartNotes& notes);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_PART_NOTES_H_
