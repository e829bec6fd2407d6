// Findings: what a check reports, and the one table that gives each kind its code, severity and
// words. A Finding says "this problem, here"; all that is the same for every instance is in the
// table (finding_codes.inc).
#ifndef QCOW2CHECK_COMMON_FINDING_H_
#define QCOW2CHECK_COMMON_FINDING_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/address.h"

namespace qcow2check {

enum class FindingCode : uint16_t {
#define FINDING(id, name, ...) k##name = id,
#include "common/finding_codes.inc"
#undef FINDING
};

enum class Severity { kCorruption, kLeak, kWarning, kInfo };
// Which total of the report a finding adds to.
enum class Tally { kNothing, kCorruptions, kLeaks, kCheckErrors };
// What it says about guest data, mildest first.
enum class DataState { kNone, kAtRisk, kAmbiguous, kLost };

enum class RepairAction {
  kNoAction,
  kRaiseRefcount,
  kLowerRefcount,
  kRebuildRefcounts,
  kWidenRefcounts,
  kSetCopied,
  kClearReservedBits,
  kRewriteEntry,
  kRelink,
  kCopyOut,
  kHoldBack,
  kRewriteSnapshotEntry,
  kDropBitmap,
  kClearDirty,
  kClearCorrupt,
};
enum class RepairSafety { kLossless, kLossy, kManual };

// What is the same for all findings of a code.
struct FindingCodeInfo {
  FindingCode code;
  absl::string_view name;  // "refcount-too-low"
  Severity severity;
  Tally tally;
  DataState data;
  RepairAction action;
  RepairSafety safety;
  absl::string_view sentence;
  absl::string_view meaning;
  absl::string_view remedy;
};

// All rows, ordered by id.
absl::Span<const FindingCodeInfo> AllFindingCodes();
const FindingCodeInfo& InfoOf(FindingCode code);
// nullptr if there is no such code.
const FindingCodeInfo* FindFindingCode(absl::string_view name);

// What a part of the image is. Also the kinds of owner of a cluster.
enum class Structure {
  kImage,
  kHeader,
  kHeaderExtension,
  kL1Table,
  kL2Table,
  kRefcountTable,
  kRefcountBlock,
  kSnapshotTable,
  kSnapshotL1Table,
  kBitmapDirectory,
  kBitmapTable,
  kBitmapData,
  kLuksHeader,
  kDataCluster,
  kCompressedCluster,
  kBackingFile,
  kDataFile,
};

absl::string_view NameOf(Severity severity);
absl::string_view NameOf(DataState state);
absl::string_view NameOf(RepairAction action);
absl::string_view NameOf(RepairSafety safety);
absl::string_view NameOf(Structure structure);  // "l2-table"
// "L2 table", for sentences.
absl::string_view WordsOf(Structure structure);

// One user of a cluster: a structure that lies there, or the entry that points there.
struct Owner {
  Structure structure = Structure::kImage;
  HostOffset host_offset;                  // of the structure's first byte
  std::optional<HostOffset> entry_offset;  // of the table entry that points here
  std::optional<GuestOffset> guest_offset;
  std::optional<uint64_t> l1_index;
  std::optional<uint64_t> l2_index;
  std::optional<uint64_t> snapshot;  // position in the snapshot table, from 0
};

enum class Confidence { kCertain, kProbable };

struct Finding {
  FindingCode code{};
  Structure structure = Structure::kImage;
  // Where in the file; the entry itself for a bad entry, the cluster for a bad refcount.
  std::optional<HostOffset> host_offset;
  uint64_t length_bytes = 0;
  // Host clusters concerned; adjacent equal findings are one finding.
  uint64_t clusters = 0;
  // How much it adds to the total that the code's tally names, as qemu-img counts.
  uint64_t count = 1;
  std::optional<GuestOffset> guest_offset;
  uint64_t guest_length_bytes = 0;
  std::optional<uint64_t> l1_index;
  std::optional<uint64_t> l2_index;
  std::optional<uint64_t> snapshot;
  // For a table entry: where it points. Entries that point to consecutive clusters are merged.
  std::optional<HostOffset> target;
  std::optional<uint64_t> stored;    // of the first one, where several were merged
  std::optional<uint64_t> expected;  // likewise
  std::vector<Owner> owners;
  Confidence confidence = Confidence::kCertain;
  // What this instance adds to the code's sentence; may be empty.
  std::string detail;
};

// "The sentence of the code: detail".
std::string MessageOf(const Finding& finding);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_FINDING_H_
