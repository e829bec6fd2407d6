// Reads many L2 tables: shared out in jobs for several threads, in batches within a job.
#ifndef QCOW2CHECK_CHECKER_TABLE_READER_H_
#define QCOW2CHECK_CHECKER_TABLE_READER_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "checker/check_state.h"
#include "checker/cluster_batch.h"
#include "checker/part_notes.h"

namespace qcow2check {

// Bytes of every table that are read and decoded at a time. A table of up to 2 MiB is one slice.
uint64_t TableSliceBytes(const Geometry& geometry);

// Divides the list of L2 tables into consecutive parts of about CheckOptions::part_bytes; tables
// with the same l1_index, which are neighbours in the list, stay together. Depends on nothing else.
std::vector<absl::Span<L2Table>> DivideTables(CheckState& state);

// A slice of a table: `bytes` from byte `begin` of the table on; empty if it is a hole, which has
// nothing but unallocated entries.
using VisitSlice =
    absl::FunctionRef<void(L2Table& table, uint64_t begin_bytes, absl::Span<const uint8_t> bytes)>;

class TableReader {
 public:
  // For one thread.
  explicit TableReader(const CheckState& state)
      : state_(state),
        batches_{ClusterBatch(state.LooksForHoles()), ClusterBatch(state.LooksForHoles())} {}

  // Calls `visit` for the slices of every table of a part, in the order of `tables`; all slices of
  // one group of tables with the same l1_index come slice by slice, so that a visitor can compare
  // the same slice of neighbours. `bytes` is valid during the call only, and so is the slice of the
  // table before it (the visitor may keep it until the group ends).
  void Read(absl::Span<L2Table> tables, PartNotes& notes, VisitSlice visit);

 private:
  const CheckState& state_;
  ClusterBatch batches_[2];  // this batch and the one before it
  int current_ = 0;
};

// Reads all L2 tables on the calling thread, in the order of the list.
void ReadAllTables(CheckState& state, VisitSlice visit);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_TABLE_READER_H_
