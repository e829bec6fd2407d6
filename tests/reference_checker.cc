#include "tests/reference_checker.h"

#include "tests/reference_walk.h"

namespace qcow2check::testing {
namespace {

constexpr FindingCode kReferenceCodes[] = {
    FindingCode::kNotQcow2,
    FindingCode::kHeaderTruncated,
    FindingCode::kUnsupportedVersion,
    FindingCode::kClusterBitsInvalid,
    FindingCode::kRefcountOrderInvalid,
    FindingCode::kHeaderLengthInvalid,
    FindingCode::kUnknownIncompatibleFeature,
    FindingCode::kCorruptBit,
    FindingCode::kCompressionTypeInvalid,
    FindingCode::kExtendedL2SmallClusters,
    FindingCode::kDataFileSnapshots,
    FindingCode::kL1OffsetInvalid,
    FindingCode::kL1TooSmall,
    FindingCode::kL1EntryReservedBits,
    FindingCode::kL1EntryWithoutOffset,
    FindingCode::kL2TableMisaligned,
    FindingCode::kL2TablePastEnd,
    FindingCode::kL2EntryReservedBits,
    FindingCode::kDataMisaligned,
    FindingCode::kZeroClusterMisaligned,
    FindingCode::kDataPastEnd,
    FindingCode::kZeroClusterPastEnd,
    FindingCode::kCompressedPastEnd,
    FindingCode::kCompressedCopied,
    FindingCode::kCompressedInDataFile,
    FindingCode::kCompressedSubclusters,
    FindingCode::kSubclusterConflict,
    FindingCode::kSubclusterWithoutCluster,
    FindingCode::kZeroFlagNotAllowed,
    FindingCode::kStrayL2Flag,
    FindingCode::kCopiedWrong,
    FindingCode::kDataPastVirtualEnd,
    FindingCode::kCrossLinkedData,
    FindingCode::kCrossLinkedL2,
    FindingCode::kDataOnMetadata,
    FindingCode::kMetadataOverlap,
    FindingCode::kRefcountTableInvalid,
    FindingCode::kRefcountTableEntryReservedBits,
    FindingCode::kRefcountBlockMisaligned,
    FindingCode::kRefcountBlockPastEnd,
    FindingCode::kRefcountBlockShared,
    FindingCode::kRefcountTooLow,
    FindingCode::kRefcountZeroInUse,
    FindingCode::kRefcountLazy,
    FindingCode::kRefcountOverflow,
    FindingCode::kLeakedCluster,
    FindingCode::kRefcountTooHigh,
    FindingCode::kRefcountPastEnd,
    FindingCode::kSnapshotTableInvalid,
    FindingCode::kSnapshotTooMany,
    FindingCode::kSnapshotEntryIncomplete,
    FindingCode::kSnapshotExtraTooLarge,
    FindingCode::kSnapshotL1Invalid,
    FindingCode::kSnapshotSizeMismatch,
    FindingCode::kBitmapExtensionInvalid,
    FindingCode::kBitmapDirectoryInvalid,
    FindingCode::kBitmapTableInvalid,
    FindingCode::kBitmapDuplicate,
};

}  // namespace

absl::Span<const FindingCode> ReferenceCodes() { return kReferenceCodes; }

ReferenceReport ReferenceCheck(const std::vector<uint8_t>& bytes) {
  return ReferenceWalk(bytes).Run();
}

}  // namespace qcow2check::testing
