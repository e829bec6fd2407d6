#include "repair/compressed_evidence.h"

#include <algorithm>
#include <vector>

#include "absl/container/btree_map.h"
#include "checker/decompress.h"
#include "common/byte_order.h"
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

bool CompressedEvidence::MissesReference(uint64_t cluster) const {
  return stored_.Get(cluster) > state_.expected->Get(cluster);
}

bool CompressedEvidence::MissesReferences(const CompressedRange& range) const {
  const int bits = state_.geo().cluster_bits;
  const uint64_t last = (range.end_bytes() - 1) >> bits;
  for (uint64_t cluster = range.offset_bytes >> bits; cluster <= last; ++cluster) {
    if (!MissesReference(cluster)) return false;
  }
  return true;
}

bool CompressedEvidence::FindTaken() const {
  const Geometry& geometry = state_.geo();
  std::vector<uint8_t> bytes(geometry.cluster_size());
  for (const L2Table& table : state_.l2_tables) {
    if (table.shape == L2Shape::kLost) continue;
    if (!state_.MayGoOn() ||
        !state_.file.ReadAt(HostOffset{table.offset_bytes}, absl::MakeSpan(bytes)).ok()) {
      return false;
    }
    for (uint64_t at = 0; at < bytes.size(); at += geometry.l2_entry_bytes()) {
      const uint64_t entry = Load64(&bytes[at]);
      if (!IsCompressed(entry)) continue;
      const CompressedRange range = DecodeCompressed(entry, geometry.cluster_bits);
      if (state_.IsOutside(range.offset_bytes, range.length_bytes) ||
          !MissesReference(range.offset_bytes >> geometry.cluster_bits)) {
        continue;
      }
      if (!state_.memory->Take(sizeof(uint64_t) * 2)) return false;
      taken_->insert(range.offset_bytes);
    }
  }
  return true;
}

bool CompressedEvidence::IsTaken(uint64_t offset_bytes) const {
  if (!taken_) {
    taken_.emplace();
    knows_all_taken_ = FindTaken();
  }
  return !knows_all_taken_ || taken_->contains(offset_bytes);
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
  const int bits = state_.geo().cluster_bits;
  const CompressedRange meant = DecodeCompressed(entry, bits);
  const bool may_be_cut_off =
      was_cut_off_ && state_.IsOutside(meant.offset_bytes, meant.length_bytes);
  if (may_be_cut_off || !state_.MayGoOn()) return std::nullopt;
  // By where the data is: what differs only in length is decompressed once.
  absl::btree_map<uint64_t, std::vector<uint64_t>> candidates;
  for (int bit = 0; bit < 62; ++bit) {
    const uint64_t candidate = entry ^ (uint64_t{1} << bit);
    const CompressedRange range = DecodeCompressed(candidate, bits);
    if (state_.IsOutside(range.offset_bytes, range.length_bytes) || !MissesReferences(range)) {
      continue;
    }
    candidates[range.offset_bytes].push_back(candidate);
  }
  if (candidates.empty()) return std::nullopt;
  const uint64_t tries_bytes = (candidates.size() + 1) * state_.geo().cluster_size();
  if (tries_bytes > tries_left_bytes_) return std::nullopt;
  tries_left_bytes_ -= tries_bytes;
  if (Decompresses(entry)) return std::nullopt;
  std::optional<uint64_t> found;
  for (const auto& [offset_bytes, same_place] : candidates) {
    CompressedRange longest = DecodeCompressed(same_place.front(), bits);
    for (const uint64_t candidate : same_place) {
      const CompressedRange range = DecodeCompressed(candidate, bits);
      if (range.length_bytes > longest.length_bytes) longest = range;
    }
    const uint64_t data_bytes = DataBytes(longest);
    if (data_bytes == 0 || IsTaken(offset_bytes)) continue;
    for (const uint64_t candidate : same_place) {
      if (DecodeCompressed(candidate, bits).length_bytes < data_bytes) continue;
      if (found) return std::nullopt;
      found = candidate;
    }
  }
  return found;
}

}  // namespace qcow2check
