// The registry of finding codes and the damage that gives them: for every code at least one image
// that must give it, and beside it the nearest image that must not.
//
// A new code needs a case here, or finding_codes_test fails.
#ifndef QCOW2CHECK_TESTS_FINDING_CASES_H_
#define QCOW2CHECK_TESTS_FINDING_CASES_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "checker/check.h"
#include "checker/report.h"
#include "common/finding.h"
#include "tests/image_builder.h"

namespace qcow2check::testing {

// The report on damage that gives the code, and where in the file the finding must be. Without a
// place the findings of the code must have none.
struct Fired {
  Report report;
  std::optional<uint64_t> place;
};

struct FindingCase {
  FindingCode code;
  absl::string_view edge;  // "what fires / what must not"
  Fired (*fires)();
  Report (*near_miss)();
  Verdict verdict = Verdict::kCorrupt;  // when it fires
  uint64_t count = 1;                   // what all its findings add to the code's total
};

// One list for each part of an image.
absl::Span<const FindingCase> HeaderCases();
absl::Span<const FindingCase> ExtensionCases();
absl::Span<const FindingCase> TableCases();
absl::Span<const FindingCase> L2EntryCases();
absl::Span<const FindingCase> OwnerCases();
absl::Span<const FindingCase> RefcountCases();
absl::Span<const FindingCase> SnapshotCases();
absl::Span<const FindingCase> BitmapCases();
absl::Span<const FindingCase> DataCases();
absl::Span<const FindingCase> ChainCases();
absl::Span<const FindingCase> CoverageCases();

std::vector<FindingCase> AllFindingCases();

// --- What the cases are made of ---

// Eight data clusters of 4 KiB, one L2 table of two: header 0x0, refcount table 0x1000, refcount
// block 0x2000, L1 table 0x3000, L2 table 0x4000, data 0x5000-0xcfff, and the file ends.
ImageOptions SmallOptions();
BuiltImage SmallImage();

Report Check(const BuiltImage& image, const CheckOptions& options = {});
// The check of a damaged image, with the place of the finding: a byte, or a header field.
Fired FiresAt(const BuiltImage& image, uint64_t place, const CheckOptions& options = {});
Fired FiresAtField(const BuiltImage& image, absl::string_view field);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_FINDING_CASES_H_
