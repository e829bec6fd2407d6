#include "repair/compressed_evidence.h"

#include <algorithm>
#include <vector>

#include "checker/decompress.h"
#include "common/limits.h"

namespace qcow2check {

uint64_t CompressedEvidence::DataBytes(const CompressedRange& range) const {
  const uint64_t size = state_.geo().cluster_size();
  if (range.offset_bytes >= state_.file.size_bytes() || size > kMaxPieceBytes) return 0;
  std::vector<uint8_t> input(range.length_bytes), output(size);
  if (!state_.file.ReadAt(HostOffset{range.offset_bytes}, absl::MakeSpan(input)).ok()) return 0;
  const auto type = static_cast<CompressionType>(state_.header.compression_type);
  const DecompressResult result = DecompressCluster(input, type, absl::MakeSpan(output));
  return result.error.empty() ? result.consumed_bytes : 0;
}

bool CompressedEvidence::MissesReferences(const CompressedRange& range) const {
  const int bits = state_.geo().cluster_bits;
  const uint64_t last = (range.end_bytes() - 1) >> bits;
  for (uint64_t cluster = range.offset_bytes >> bits; cluster <= last; ++cluster) {
    if (stored_.Get(cluster) <= state_.expected->Get(cluster)) return false;
  }
  return true;
}

bool CompressedEvidence::Decompresses(uint64_t entry) const {
  const CompressedRange range = DecodeCompressed(entry, state_.geo().cluster_bits);
  return !state_.IsOutside(range.offset_bytes, range.length_bytes) && DataBytes(range) != 0;
}

std::optional<uint64_t> CompressedEvidence::AsLongAsItsData(uint64_t entry) const {
  CompressedRange range = DecodeCompressed(entry, state_.geo().cluster_bits);
  const uint64_t end = std::min(range.end_bytes(), state_.file.size_bytes());
  if (range.offset_bytes >= end) return std::nullopt;
  range.length_bytes = end - range.offset_bytes;
  range.length_bytes = DataBytes(range);
  if (range.length_bytes == 0 || !MissesReferences(range)) return std::nullopt;
  return EncodeCompressed(range, state_.geo().cluster_bits);
}

std::optional<uint64_t> CompressedEvidence::OneBitAway(uint64_t entry) const {
  if (state_.findings.Has(FindingCode::kFileTruncated)) return std::nullopt;
  std::optional<uint64_t> found;
  for (int bit = 0; bit < 62; ++bit) {
    const uint64_t candidate = entry ^ (uint64_t{1} << bit);
    const CompressedRange range = DecodeCompressed(candidate, state_.geo().cluster_bits);
    if (IsCopied(candidate) || state_.IsOutside(range.offset_bytes, range.length_bytes)) continue;
    if (!MissesReferences(range) || !Decompresses(candidate)) continue;
    if (found) return std::nullopt;
    found = candidate;
  }
  return found;
}

}  // namespace qcow2check
