#include "checker/table_reader.h"

#include <algorithm>

#include "common/limits.h"

namespace qcow2check {
namespace {

size_t GroupEnd(absl::Span<const L2Table> tables, size_t begin) {
  size_t end = begin;
  while (end < tables.size() && tables[end].l1_index == tables[begin].l1_index) ++end;
  return end;
}

size_t TablesInBatch(const CheckState& state) {
  return std::max<uint64_t>(1, state.options.part_bytes / TableSliceBytes(state.geo()));
}

}  // namespace

uint64_t TableSliceBytes(const Geometry& geometry) {
  return std::min(geometry.cluster_size(), kMaxPieceBytes);
}

std::vector<absl::Span<L2Table>> DivideTables(CheckState& state) {
  const absl::Span<L2Table> tables = absl::MakeSpan(state.l2_tables);
  const size_t most = TablesInBatch(state);
  std::vector<absl::Span<L2Table>> parts;
  size_t begin = 0, end = 0;
  while (end < tables.size()) {
    const size_t group_end = GroupEnd(tables, end);
    if (end != begin && group_end - begin > most) {
      parts.push_back(tables.subspan(begin, end - begin));
      begin = end;
    }
    end = group_end;
  }
  if (end != begin) parts.push_back(tables.subspan(begin, end - begin));
  return parts;
}

void TableReader::Read(absl::Span<L2Table> tables, PartNotes& notes, VisitSlice visit) {
  const uint64_t slice_bytes = TableSliceBytes(state_.geo());
  const uint64_t table_bytes = state_.geo().cluster_size();
  const size_t most = TablesInBatch(state_);
  std::vector<uint64_t> offsets;
  for (size_t begin = 0; begin < tables.size();) {
    const size_t end = slice_bytes == table_bytes ? tables.size() : GroupEnd(tables, begin);
    for (uint64_t slice = 0; slice < table_bytes; slice += slice_bytes) {
      for (size_t first = begin; first < end; first += offsets.size()) {
        offsets.clear();
        for (size_t i = first; i < std::min(end, first + most); ++i) {
          offsets.push_back(tables[i].offset_bytes + slice);
        }
        // A part of one batch needs one buffer; the slices before those of a batch are kept.
        if (end - begin > most) current_ = 1 - current_;
        ClusterBatch& batch = batches_[current_];
        batch.Read(state_.file, offsets, slice_bytes, Structure::kL2Table, notes);
        for (size_t i = 0; i < offsets.size(); ++i) {
          const uint8_t* bytes = batch.pieces()[i].bytes;
          visit(tables[first + i], slice, absl::MakeConstSpan(bytes, bytes ? slice_bytes : 0));
        }
      }
    }
    begin = end;
  }
}

void ReadAllTables(CheckState& state, VisitSlice visit) {
  TableReader reader(state);
  for (const absl::Span<L2Table> part : DivideTables(state)) {
    if (!state.MayGoOn()) return;
    PartNotes notes = state.NewPart();
    reader.Read(part, notes, visit);
    state.Absorb(std::move(notes));
  }
}

}  // namespace qcow2check
