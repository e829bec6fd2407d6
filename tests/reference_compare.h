// Says where a report of the real checker and one of the reference checker disagree.
#ifndef QCOW2CHECK_TESTS_REFERENCE_COMPARE_H_
#define QCOW2CHECK_TESTS_REFERENCE_COMPARE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "checker/report.h"
#include "tests/reference_checker.h"

namespace qcow2check::testing {

// CheckImage on the bytes, in memory.
Report CheckBytes(const std::vector<uint8_t>& bytes, uint64_t max_findings = 1'000'000);

// The judgement in the report that the reference checker does not make; empty if there is none.
std::string WhyNotComparable(const Report& report);

// One line for each number, place or cluster that differs; empty if none does. The report must
// list all its findings.
std::string Differences(const Report& report, const ReferenceReport& reference);

// Everything that the reports of one image must have in common, whoever reads it, as text to
// compare. With `findings` also each finding; without, only their totals.
std::string Digest(const Report& report, bool findings);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_REFERENCE_COMPARE_H_
