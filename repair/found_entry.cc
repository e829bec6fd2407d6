#include "repair/found_entry.h"

namespace qcow2check {

bool IsAboutTarget(FindingCode code) {
  switch (code) {
    case FindingCode::kL1EntryWithoutOffset:
    case FindingCode::kL2TableMisaligned:
    case FindingCode::kL2TablePastEnd:
    case FindingCode::kDataMisaligned:
    case FindingCode::kZeroClusterMisaligned:
    case FindingCode::kDataPastEnd:
    case FindingCode::kZeroClusterPastEnd:
    case FindingCode::kCompressedPastEnd:
    case FindingCode::kSubclusterWithoutCluster:
    case FindingCode::kStrayL2Flag:
      return true;
    default:
      return false;
  }
}

bool IsAboutFlags(FindingCode code) {
  switch (code) {
    case FindingCode::kL1EntryReservedBits:
    case FindingCode::kL2EntryReservedBits:
    case FindingCode::kCompressedCopied:
    case FindingCode::kCompressedSubclusters:
    case FindingCode::kSubclusterConflict:
    case FindingCode::kZeroFlagNotAllowed:
      return true;
    default:
      return false;
  }
}

bool IsAboutCollision(FindingCode code) {
  return code == FindingCode::kCrossLinkedData || code == FindingCode::kDataOnMetadata;
}

bool IsAboutTooFew(FindingCode code) {
  return code == FindingCode::kRefcountTooLow || code == FindingCode::kRefcountZeroInUse;
}

bool IsL1(const Finding& finding) {
  return finding.structure == Structure::kL1Table ||
         finding.structure == Structure::kSnapshotL1Table;
}

}  // namespace qcow2check
