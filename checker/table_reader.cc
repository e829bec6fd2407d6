#include "checker/table_reader.h"

#include <algorithm>
#include <numeric>

#include "common/limits.h"

namespace qcow2check {
namespace {

// Enough for a read to be worth its latency, little enough to stay in the processor's cache.
constexpr uint64_t kBatchBytes = 2u << 20;

}  // namespace

uint64_t TableSliceBytes(const Geometry& geometry) {
  return std::min(geometry.cluster_size(), kMaxPieceBytes);
}

size_t TableReader::GroupEnd(absl::Span<const L2Table> tables, size_t begin) {
  size_t end = begin;
  while (end < tables.size() && tables[end].l1_index == tables[begin].l1_index) ++end;
  return end;
}

void TableReader::ReadBatch(absl::Span<const L2Table> tables, uint64_t slice_begin) {
  const uint64_t slice_bytes = TableSliceBytes(state_.geo());
  const size_t count =
      std::min<size_t>(tables.size(), std::max<uint64_t>(1, kBatchBytes / slice_bytes));
  current_ = 1 - current_;
  std::vector<uint8_t>& buffer = buffers_[current_];
  buffer.resize(count * slice_bytes);
  batch_.resize(count);
  std::vector<size_t> by_place(count);
  std::iota(by_place.begin(), by_place.end(), size_t{0});
  std::sort(by_place.begin(), by_place.end(),
            [&](size_t a, size_t b) { return tables[a].offset_bytes < tables[b].offset_bytes; });
  for (size_t i = 0; i < count;) {
    // One read for tables that follow each other in the file (whole tables only).
    const uint64_t place = tables[by_place[i]].offset_bytes + slice_begin;
    size_t end = i + 1;
    while (end < count && slice_bytes == state_.geo().cluster_size() &&
           tables[by_place[end]].offset_bytes == place + (end - i) * slice_bytes) {
      ++end;
    }
    state_.Read(HostOffset{place},
                absl::MakeSpan(buffer).subspan(i * slice_bytes, (end - i) * slice_bytes),
                Structure::kL2Table);
    for (; i < end; ++i) batch_[by_place[i]] = buffer.data() + i * slice_bytes;
  }
}

}  // namespace qcow2check
