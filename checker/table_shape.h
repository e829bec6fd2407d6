// Is this cluster an L2 table at all? Judged from its content, before an entry of it is believed.
#ifndef QCOW2CHECK_CHECKER_TABLE_SHAPE_H_
#define QCOW2CHECK_CHECKER_TABLE_SHAPE_H_

#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "checker/check_state.h"
#include "common/geometry.h"

namespace qcow2check {

// What a piece of an L2 table looks like, entry by entry.
struct TableScan {
  uint64_t used = 0;       // entries that are not 0
  uint64_t allocated = 0;  // normal, preallocated or compressed
  uint64_t malformed = 0;  // reserved bits, misaligned, or flags that exclude each other
  uint64_t outside = 0;    // well formed, but behind the end of the file
  uint64_t absurd = 0;     // of these, so far behind that no truncation explains it
  uint64_t repeated = 0;   // entries equal to the value that most entries have, if most do
};

// Scans `table`, whole entries of an L2 table, for a file of `file_bytes`.
TableScan ScanTable(absl::Span<const uint8_t> table, const Geometry& geometry, uint64_t file_bytes);

// Something else than an L2 table: at least 8 entries, and more than half of those in use, could
// not be entries (malformed or absurd), or point to one and the same place.
// Where the refcount table leads as well, most of the entries in use decide, however few they are.
bool IsNoTable(const TableScan& scan, bool is_refcount_block = false);

// Whether the cluster holds refcounts of this width: small numbers, hardly any others.
bool LooksLikeRefcounts(absl::Span<const uint8_t> cluster, int refcount_order);

// In words for a message: "refcounts", "text", "an ext2/3/4 file system", "other data".
std::string DescribeContent(absl::Span<const uint8_t> cluster, const Geometry& geometry);

// Reads the cluster at `offset` (cluster aligned, in the file) and says whether it is beyond
// doubt an L2 table: something is mapped, and every entry could be right. With `may_be_cut_off`,
// less than half of them may lead behind the end of the file.
bool ProvesToBeL2Table(CheckState& state, uint64_t offset, bool may_be_cut_off = false);

// The same of a cluster that could be an L2 table which maps nothing: zeros, or entries that read
// as zeros.
bool CouldBeEmptyL2Table(CheckState& state, uint64_t offset);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_TABLE_SHAPE_H_
