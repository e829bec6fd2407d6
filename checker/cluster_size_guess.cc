#include "checker/cluster_size_guess.h"

#include <vector>

#include "absl/strings/str_format.h"
#include "common/byte_order.h"
#include "common/limits.h"
#include "common/refcount_block.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

bool FitsClusterBits(CheckState& state, uint32_t bits) {
  const Header& header = state.header;
  const uint64_t cluster_size = uint64_t{1} << bits;
  const uint64_t size = state.file.size_bytes();
  if (!IsAligned(header.refcount_table_offset, cluster_size) ||
      !IsAligned(header.l1_table_offset, cluster_size) || header.refcount_table_offset >= size ||
      header.l1_table_offset >= size) {
    return false;
  }
  std::vector<uint8_t> first(8);
  state.Read(HostOffset{header.refcount_table_offset}, absl::MakeSpan(first),
             Structure::kRefcountTable);
  const uint64_t block = Load64(first.data()) & kRefcountTableOffsetMask;
  if (block == 0 || !IsAligned(block, cluster_size) || block >= size) return false;
  const uint64_t entries = cluster_size * 8 >> state.geo().refcount_order;
  const uint64_t clusters = DivideRoundingUp(size, cluster_size);
  if (clusters >= entries) return false;  // one block does not show the end of the file
  std::vector<uint8_t> counts(cluster_size);
  state.Read(HostOffset{block}, absl::MakeSpan(counts), Structure::kRefcountBlock);
  const auto count_at = [&](uint64_t offset) {
    return LoadRefcount(counts.data(), offset >> bits, state.geo().refcount_order);
  };
  if (count_at(0) != 1 || count_at(header.refcount_table_offset) != 1 || count_at(block) != 1 ||
      count_at(header.l1_table_offset) != 1) {
    return false;
  }
  uint64_t used = 0;
  for (uint64_t i = 0; i < entries; ++i) {
    if (LoadRefcount(counts.data(), i, state.geo().refcount_order) != 0) used = i + 1;
  }
  return used == clusters;
}

}  // namespace

void ReportSuspectClusterSize(CheckState& state) {
  if (!state.refcounts_readable || state.mismatched->empty()) return;
  if (state.header.cluster_bits > kQemuMaxClusterBits ||
      FitsClusterBits(state, state.header.cluster_bits)) {
    return;
  }
  for (uint32_t bits = kMinClusterBits; bits <= kQemuMaxClusterBits; ++bits) {
    if (bits == state.header.cluster_bits || !FitsClusterBits(state, bits)) continue;
    state.findings.Add({.code = FindingCode::kClusterBitsSuspect,
                        .structure = Structure::kHeader,
                        .host_offset = HostOffset{20},
                        .length_bytes = 4,
                        .stored = state.header.cluster_bits,
                        .expected = bits,
                        .confidence = Confidence::kProbable,
                        .detail = absl::StrFormat("the header says 2^%d bytes, the tables fit "
                                                  "2^%d",
                                                  state.header.cluster_bits, bits)});
    return;
  }
}

}  // namespace qcow2check
