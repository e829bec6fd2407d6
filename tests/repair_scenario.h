// What a test expects of one repair as a whole.
#ifndef QCOW2CHECK_TESTS_REPAIR_SCENARIO_H_
#define QCOW2CHECK_TESTS_REPAIR_SCENARIO_H_

#include <cstdint>
#include <string>
#include <vector>

#include "checker/report.h"
#include "common/finding.h"
#include "tests/guest_view.h"
#include "tests/repair_promises.h"

namespace qcow2check::testing {

// Repairs `damaged` and expects that all is well then: our check and QEMU's find nothing that
// counts, a second repair has nothing to do, and undo gives `damaged` back.
RepairedImage ExpectRepaired(const std::vector<uint8_t>& damaged);

// Expects that a repair leaves the finding as it is, and says so.
RepairedImage ExpectDeclined(const std::vector<uint8_t>& damaged, FindingCode code);

// What the snapshots show, each as far as it is mapped.
std::vector<std::map<uint64_t, GuestUnit>> SnapshotContents(const std::vector<uint8_t>& image);

// "name(granularity, in-use): data" of each bitmap, by the order in the directory; the data as the
// numbers of the granules that are dirty. The image must be sound.
std::vector<std::string> BitmapContents(const std::vector<uint8_t>& image);

bool HasFinding(const Report& report, FindingCode code);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_REPAIR_SCENARIO_H_
