#include "checker/lost_pointers.h"

#include <algorithm>
#include <bit>
#include <iterator>

namespace qcow2check {
namespace {

// Findings about pointers that no longer lead to what they once did.
constexpr FindingCode kLostPointers[] = {
    FindingCode::kL1Lost,
    FindingCode::kL1EntryLost,
    FindingCode::kL1OffsetInvalid,
    FindingCode::kL1TooSmall,
    FindingCode::kL1EntryReservedBits,
    FindingCode::kL1EntryWithoutOffset,
    FindingCode::kL2TableMisaligned,
    FindingCode::kL2TablePastEnd,
    FindingCode::kL2TableLost,
    FindingCode::kL2EntryReservedBits,
    FindingCode::kDataMisaligned,
    FindingCode::kDataPastEnd,
    FindingCode::kCompressedPastEnd,
    FindingCode::kCompressedInDataFile,
    FindingCode::kSubclusterWithoutCluster,
    FindingCode::kCrossLinkedData,
    FindingCode::kCrossLinkedL2,
    FindingCode::kDataOnMetadata,
    FindingCode::kMetadataOverlap,
    FindingCode::kSnapshotTableInvalid,
    FindingCode::kSnapshotTooMany,
    FindingCode::kSnapshotL1Invalid,
    FindingCode::kSnapshotSizeMismatch,
    FindingCode::kClusterBitsSuspect,
    FindingCode::kBitmapDirectoryInvalid,
    FindingCode::kBitmapTableInvalid,
};

// More references than a few writes that a crash cut short would leave.
constexpr uint64_t kManyReferences = 8;

// A COPIED flag alone is a pointer with one flipped bit, if one bit leads to an orphan.
bool HasFlagOneBitFromOrphan(const CheckState& state) {
  return state.findings.Has(FindingCode::kStrayL2Flag) &&
         std::any_of(state.orphans.begin(), state.orphans.end(), [](const OrphanRun& run) {
           return std::bit_ceil(run.first_cluster) < run.first_cluster + run.clusters;
         });
}

}  // namespace

bool HasLostPointers(const CheckState& state) {
  return std::any_of(std::begin(kLostPointers), std::end(kLostPointers),
                     [&state](FindingCode code) { return state.findings.Has(code); }) ||
         HasFlagOneBitFromOrphan(state);
}

bool HasOrphansOfManyEntries(const CheckState& state) {
  return !state.compressed->empty() &&
         std::any_of(state.orphans.begin(), state.orphans.end(), [&state](const OrphanRun& run) {
           return run.stored >= kManyReferences + state.snapshots.size();
         });
}

}  // namespace qcow2check
