// Reads many L2 tables: in batches, neighbours in the file with one read.
#ifndef QCOW2CHECK_CHECKER_TABLE_READER_H_
#define QCOW2CHECK_CHECKER_TABLE_READER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "checker/check_state.h"

namespace qcow2check {

// Bytes of every table that are read and decoded at a time. A table of up to 2 MiB is one slice.
uint64_t TableSliceBytes(const Geometry& geometry);

// Calls visit(table, slice_begin, bytes) for the slices of every table, in the order of `tables`;
// all slices of one group of tables with the same l1_index come slice by slice, so that a visitor
// can compare the same slice of neighbours. `bytes` is valid during the call only, and so is the
// slice of the table before it (the visitor may keep it until the group ends).
class TableReader {
 public:
  explicit TableReader(CheckState& state) : state_(state) {}

  template <typename Visit>
  void ReadAll(absl::Span<L2Table> tables, Visit visit) {
    const uint64_t slice_bytes = TableSliceBytes(state_.geo());
    const uint64_t slices = state_.geo().cluster_size() / slice_bytes;
    for (size_t begin = 0; begin < tables.size();) {
      const size_t end = slices == 1 ? tables.size() : GroupEnd(tables, begin);
      for (uint64_t slice = 0; slice < slices; ++slice) {
        for (size_t first = begin; first < end; first += batch_.size()) {
          ReadBatch(tables.subspan(first, end - first), slice * slice_bytes);
          for (size_t i = 0; i < batch_.size(); ++i) {
            visit(tables[first + i], slice * slice_bytes,
                  absl::MakeConstSpan(batch_[i], slice_bytes));
          }
        }
      }
      begin = end;
    }
  }

 private:
  static size_t GroupEnd(absl::Span<const L2Table> tables, size_t begin);
  // Fills batch_ with the slice at `slice_begin` of as many tables from the front as fit.
  void ReadBatch(absl::Span<const L2Table> tables, uint64_t slice_begin);

  CheckState& state_;
  std::vector<uint8_t> buffers_[2];  // this batch and the one before it
  int current_ = 0;
  std::vector<const uint8_t*> batch_;  // slices, in the order of the tables
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_TABLE_READER_H_
