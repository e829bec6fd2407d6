// The refcount table pass: the table and the places of its blocks (specification, "Refcounts").
//
// Needs the geometry. Makes the list of used refcount table entries; claims the table and its
// blocks. What the blocks say is compared later and is never evidence of what is in use.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

void CheckEntry(CheckState& state, uint64_t index, uint64_t entry) {
  const uint64_t cluster_size = state.geo().cluster_size();
  const uint64_t place = state.header.refcount_table_offset + index * 8;
  const uint64_t offset = entry & kRefcountTableOffsetMask;
  const bool reserved_bits = (entry & kRefcountTableReservedMask) != 0;
  // What is written over has reserved bits and a bad offset: one damaged entry, counted once.
  const auto add = [&](FindingCode code, std::string detail) {
    const bool is_counted = !reserved_bits || code == FindingCode::kRefcountTableEntryReservedBits;
    state.findings.Add({.code = code,
                        .structure = Structure::kRefcountTable,
                        .host_offset = HostOffset{place},
                        .length_bytes = 8,
                        .count = is_counted ? uint64_t{1} : uint64_t{0},
                        .stored = entry,
                        .detail = std::move(detail)});
  };
  if (reserved_bits) {
    add(FindingCode::kRefcountTableEntryReservedBits,
        absl::StrFormat("entry %d is 0x%016x", index, entry));
  }
  if (offset == 0) return;
  if (!IsAligned(offset, cluster_size)) {
    add(FindingCode::kRefcountBlockMisaligned,
        absl::StrFormat("entry %d points to 0x%x", index, offset));
    state.Skip(absl::StrFormat("refcount block %d", index), "it is misaligned");
    return;
  }
  if (offset >= state.file.size_bytes()) {
    add(FindingCode::kRefcountBlockPastEnd,
        absl::StrFormat("entry %d points to 0x%x; the file ends at 0x%x", index, offset,
                        state.file.size_bytes()));
    state.Skip(absl::StrFormat("refcount block %d", index), "it is not in the file");
    return;
  }
  if (offset + cluster_size > state.file.size_bytes()) {
    state.findings.Add({.code = FindingCode::kCutByEndOfFile,
                        .structure = Structure::kRefcountBlock,
                        .host_offset = HostOffset{offset},
                        .length_bytes = cluster_size});
  }
  state.Count(offset, cluster_size, 1);
  state.refcount_blocks.push_back({index, offset});
}

// An L1 entry and the refcount table lead to the same place.
void MarkL2TablesAmongBlocks(CheckState& state) {
  if (state.collisions->empty()) return;
  absl::flat_hash_set<uint64_t> blocks;
  for (const RefcountBlock& block : state.refcount_blocks) blocks.insert(block.offset_bytes);
  for (L2Table& table : state.l2_tables) {
    table.is_refcount_block = blocks.contains(table.offset_bytes);
  }
}

}  // namespace

void CheckRefcountTable(CheckState& state) {
  const Header& header = state.header;
  const uint64_t cluster_size = state.geo().cluster_size();
  const uint64_t offset = header.refcount_table_offset;
  const uint64_t length = SaturatingMultiply(header.refcount_table_clusters, cluster_size);
  const uint64_t size = state.file.size_bytes();
  const auto add = [&](std::string detail) {
    state.findings.Add({.code = FindingCode::kRefcountTableInvalid,
                        .structure = Structure::kRefcountTable,
                        .host_offset = HostOffset{offset},
                        .length_bytes = length,
                        .stored = offset,
                        .detail = std::move(detail)});
  };
  if (length == 0 || offset == 0 || !IsAligned(offset, cluster_size)) {
    add(absl::StrFormat("%d clusters at 0x%x", header.refcount_table_clusters, offset));
    state.Skip("the refcount table", "it cannot be found");
    return;
  }
  if (offset >= size) {
    add(absl::StrFormat("it is at 0x%x; the file ends at 0x%x", offset, size));
    state.Skip("the refcount table", "it is not in the file");
    return;
  }
  if (length > kQemuMaxRefcountTableBytes) {
    state.findings.Add({.code = FindingCode::kRefcountTableLarge,
                        .structure = Structure::kRefcountTable,
                        .host_offset = HostOffset{offset},
                        .length_bytes = length,
                        .detail = absl::StrFormat("%d clusters", header.refcount_table_clusters)});
  }
  // A table that only its last, unused part cuts off still has all its entries.
  if (state.IsOutside(offset, length)) {
    add(absl::StrFormat("it ends at 0x%x; the file ends at 0x%x", SaturatingAdd(offset, length),
                        size));
    const uint64_t inside = RoundUp(size, cluster_size) - offset;
    state.Claim({Structure::kRefcountTable, offset, inside, std::nullopt}, 1);
  } else {
    state.Claim({Structure::kRefcountTable, offset, length, std::nullopt}, 1);
  }
  const uint64_t end = std::min(SaturatingAdd(offset, length), size);
  std::vector<uint8_t> piece;
  uint64_t at = offset;
  while (at < end && state.MayGoOn()) {
    const Extent data = state.file.NextData(HostOffset{at});
    if (data.empty() || data.begin_bytes >= end) break;
    at = std::max(at, data.begin_bytes & ~uint64_t{7});
    piece.resize(RoundUp(std::min({end - at, kMaxPieceBytes, data.end_bytes - at}), 8));
    if (!state.Read(HostOffset{at}, absl::MakeSpan(piece), Structure::kRefcountTable)) {
      // Which blocks there are is unknown, and an unknown refcount is not 0.
      state.refcounts_readable = false;
      state.Skip("all refcounts", "the refcount table cannot be read");
    }
    for (uint64_t i = 0; i < piece.size(); i += 8) {
      const uint64_t entry = Load64(&piece[i]);
      if (entry != 0) CheckEntry(state, (at - offset + i) / 8, entry);
    }
    at += piece.size();
  }
  MarkL2TablesAmongBlocks(state);
}

}  // namespace qcow2check
