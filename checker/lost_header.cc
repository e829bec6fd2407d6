#include "checker/lost_header.h"

#include <array>

#include "absl/strings/str_format.h"
#include "common/byte_order.h"

namespace qcow2check {
namespace {

// The common order of cluster sizes: QEMU's default first.
constexpr std::array<int, 13> kClusterBitsToTry = {16, 21, 20, 12, 9,  10, 11,
                                                   13, 14, 15, 17, 18, 19};

// Most files without the magic are no images: what cannot be read of them is no fault of one.
bool Read(CheckState& state, uint64_t offset_bytes, absl::Span<uint8_t> dst) {
  if (state.file.ReadAt(HostOffset{offset_bytes}, dst).ok()) return true;
  state.Skip(absl::StrFormat("whether 0x%x belongs to an image without a header", offset_bytes),
             "it cannot be read");
  return false;
}

bool LooksLikeRefcountTableAt(CheckState& state, uint64_t cluster_size) {
  const uint64_t size = state.file.size_bytes();
  if (size < 3 * cluster_size) return false;
  std::array<uint8_t, 64> table;
  if (!Read(state, cluster_size, absl::MakeSpan(table))) return false;
  const uint64_t block = Load64(table.data());
  if (block == 0 || !IsAligned(block, cluster_size) || block >= size) return false;
  for (size_t i = 8; i < table.size(); i += 8) {
    const uint64_t entry = Load64(&table[i]);
    if (!IsAligned(entry, cluster_size) || entry >= size) return false;
  }
  // 16-bit refcounts of the header, the refcount table and the first clusters behind them.
  std::array<uint8_t, 8> counts;
  if (!Read(state, block, absl::MakeSpan(counts))) return false;
  return Load16(&counts[0]) == 1 && Load16(&counts[2]) == 1 && Load16(&counts[4]) == 1;
}

}  // namespace

bool ReportLostHeader(CheckState& state) {
  for (const int bits : kClusterBitsToTry) {
    if (!LooksLikeRefcountTableAt(state, uint64_t{1} << bits)) continue;
    state.findings.Add(
        {.code = FindingCode::kHeaderLost,
         .structure = Structure::kHeader,
         .host_offset = HostOffset{0},
         .length_bytes = uint64_t{1} << bits,
         .clusters = 1,
         .confidence = Confidence::kProbable,
         .detail = absl::StrFormat("a refcount table for clusters of %d bytes is at 0x%x",
                                   1 << bits, 1 << bits)});
    state.Skip("everything", "the header is gone");
    return true;
  }
  return false;
}

}  // namespace qcow2check
