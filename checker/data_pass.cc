// The data pass (--verify-data): what only the data shows.
//
// Needs the L2 pass. Collects the compressed clusters from the L2 tables, then reads, decompresses
// and judges them in the order of their places in the file: what several entries name is
// decompressed once, and what overlaps no more often than the file is long. In images with an
// external data file it compares the host offsets with the guest offsets and the size of the file
// instead.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "checker/decompress.h"
#include "checker/table_reader.h"
#include "common/byte_order.h"
#include "common/checked_math.h"
#include "common/limits.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

// One compressed cluster: an entry of a distinct L2 table.
struct CompressedCluster {
  CompressedRange range;
  uint64_t l1_index = 0;
  uint64_t l2_index = 0;
  uint64_t entry_offset = 0;
  std::optional<uint64_t> snapshot;
};

Finding FindingAt(const CheckState& state, FindingCode code, const CompressedCluster& cluster) {
  return {.code = code,
          .structure = Structure::kCompressedCluster,
          .host_offset = HostOffset{cluster.range.offset_bytes},
          .length_bytes = cluster.range.length_bytes,
          .clusters = 1,
          .guest_offset = state.geo().GuestOffsetOf(cluster.l1_index, cluster.l2_index),
          .guest_length_bytes = state.geo().cluster_size(),
          .l1_index = cluster.l1_index,
          .l2_index = cluster.l2_index,
          .snapshot = cluster.snapshot};
}

std::vector<CompressedCluster> CollectCompressed(CheckState& state) {
  std::vector<CompressedCluster> clusters;
  const Geometry& geometry = state.geo();
  const uint64_t step = geometry.l2_entry_bytes();
  ReadAllTables(state, [&](L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) {
    if (table.shape == L2Shape::kLost) return;
    for (uint64_t at = 0; at < bytes.size(); at += step) {
      const uint64_t entry = Load64(&bytes[at]);
      if (!IsCompressed(entry)) continue;
      const CompressedRange range = DecodeCompressed(entry, geometry.cluster_bits);
      if (state.IsOutside(range.offset_bytes, range.length_bytes)) continue;
      if (!state.memory->Take(sizeof(CompressedCluster))) return;
      clusters.push_back({range, table.l1_index, (begin + at) / step,
                          table.offset_bytes + begin + at, table.snapshot});
    }
  });
  // Snapshots share compressed clusters: the same bytes at the same guest offset are one.
  const auto key = [](const CompressedCluster& c) {
    return std::make_tuple(c.range.offset_bytes, c.range.length_bytes, c.l1_index, c.l2_index);
  };
  std::stable_sort(clusters.begin(), clusters.end(),
                   [&](const auto& a, const auto& b) { return key(a) < key(b); });
  clusters.erase(std::unique(clusters.begin(), clusters.end(),
                             [&](const auto& a, const auto& b) { return key(a) == key(b); }),
                 clusters.end());
  return clusters;
}

void ReportOverlap(CheckState& state, const CompressedCluster& last,
                   const CompressedCluster& cluster) {
  Finding finding = FindingAt(state, FindingCode::kCompressedOverlap, cluster);
  for (const CompressedCluster* owner : {&last, &cluster}) {
    finding.owners.push_back(
        {.structure = Structure::kCompressedCluster,
         .host_offset = HostOffset{owner->range.offset_bytes},
         .entry_offset = HostOffset{owner->entry_offset},
         .guest_offset = state.geo().GuestOffsetOf(owner->l1_index, owner->l2_index),
         .l1_index = owner->l1_index,
         .l2_index = owner->l2_index,
         .snapshot = owner->snapshot});
  }
  state.findings.Add(std::move(finding));
}

// A claim that is too long looks right once a repair has raised the neighbour's refcount to fit it:
// only the data shows it.
void ReportTooLong(CheckState& state, const CompressedCluster& cluster, uint64_t used_bytes) {
  const int bits = state.geo().cluster_bits;
  const uint64_t claimed_last = (cluster.range.end_bytes() - 1) >> bits;
  const uint64_t data_last =
      (cluster.range.offset_bytes + std::max<uint64_t>(used_bytes, 1) - 1) >> bits;
  if (claimed_last <= data_last) return;
  Finding finding = FindingAt(state, FindingCode::kCompressedTooLong, cluster);
  finding.detail =
      absl::StrFormat("%d bytes are claimed, %d are used", cluster.range.length_bytes, used_bytes);
  state.findings.Add(std::move(finding));
}

void CheckCompressed(CheckState& state) {
  const std::vector<CompressedCluster> clusters = CollectCompressed(state);
  if (clusters.empty()) return;
  if (state.geo().cluster_size() > kMaxPieceBytes) {
    state.Skip("compressed data", "its clusters are larger than the 2 MiB that QEMU opens");
    return;
  }
  const auto type = static_cast<CompressionType>(state.header.compression_type);
  std::vector<uint8_t> input, output(state.geo().cluster_size());
  uint64_t used_end = 0;  // of the compressed data before
  size_t used_by = 0;
  // Streams do not overlap, so together they are no longer than the file.
  uint64_t bytes_left = SaturatingMultiply(state.file.size_bytes(), 2);
  DecompressResult result;
  for (size_t i = 0; i < clusters.size() && state.MayGoOn(); ++i) {
    const CompressedCluster& cluster = clusters[i];
    if (i == 0 || cluster.range != clusters[i - 1].range) {
      if (bytes_left == 0) {
        state.findings.Add({.code = FindingCode::kLimitReached,
                            .structure = Structure::kCompressedCluster,
                            .host_offset = HostOffset{cluster.range.offset_bytes},
                            .detail = "compressed clusters overlap so often that decompressing "
                                      "them all would take too long"});
        state.Skip("compressed data that overlaps", "limit reached");
        return;
      }
      input.resize(cluster.range.length_bytes);
      state.Read(HostOffset{cluster.range.offset_bytes}, absl::MakeSpan(input),
                 Structure::kCompressedCluster);
      result = DecompressCluster(input, type, absl::MakeSpan(output));
      // What is claimed ends at a sector; how long a broken stream is, nobody knows.
      const uint64_t claimed = input.size() - std::min<uint64_t>(input.size(), kSectorBytes - 1);
      const uint64_t used = result.error.empty() ? result.consumed_bytes : claimed;
      bytes_left -= std::min(bytes_left, std::max<uint64_t>(used, 1));
    }
    ++state.coverage.compressed_clusters_decompressed;
    if (!result.error.empty()) {
      Finding finding = FindingAt(state, FindingCode::kCompressedBroken, cluster);
      finding.detail = result.error;
      state.findings.Add(std::move(finding));
    }
    // Two lengths for one cluster are not two clusters: the data says how long it is.
    const CompressedCluster& last = clusters[used_by];
    const bool is_the_same = cluster.range.offset_bytes == last.range.offset_bytes &&
                             cluster.l1_index == last.l1_index && cluster.l2_index == last.l2_index;
    if (cluster.range.offset_bytes < used_end && !is_the_same) {
      ReportOverlap(state, last, cluster);
    }
    // How far a broken stream goes is not known.
    if (!result.error.empty()) continue;
    ReportTooLong(state, cluster, result.consumed_bytes);
    const uint64_t end = cluster.range.offset_bytes + result.consumed_bytes;
    if (end > used_end) {
      used_end = end;
      used_by = i;
    }
  }
}

void CheckDataFileEntries(CheckState& state) {
  const Geometry& geometry = state.geo();
  const CheckOptions& options = state.options;
  const uint64_t step = geometry.l2_entry_bytes();
  ReadAllTables(state, [&](L2Table& table, uint64_t begin, absl::Span<const uint8_t> bytes) {
    if (table.shape == L2Shape::kLost) return;
    for (uint64_t at = 0; at < bytes.size(); at += step) {
      const uint64_t entry = Load64(&bytes[at]);
      const L2EntryKind kind = KindOfL2Entry(entry, geometry);
      if (kind != L2EntryKind::kNormal && kind != L2EntryKind::kZeroAllocated) continue;
      const uint64_t l2_index = (begin + at) / step;
      const GuestOffset guest = geometry.GuestOffsetOf(table.l1_index, l2_index);
      const auto add = [&](FindingCode code) {
        state.findings.Add({.code = code,
                            .structure = Structure::kDataFile,
                            .host_offset = HostOffset{table.offset_bytes + begin + at},
                            .length_bytes = step,
                            .clusters = 1,
                            .guest_offset = guest,
                            .guest_length_bytes = geometry.cluster_size(),
                            .l1_index = table.l1_index,
                            .l2_index = l2_index,
                            .target = HostOffset{EntryOffset(entry)},
                            .stored = EntryOffset(entry),
                            .expected = guest.bytes});
      };
      if (EntryOffset(entry) != guest.bytes) add(FindingCode::kDataFileOffsetMismatch);
      if (kind == L2EntryKind::kNormal && options.data_file_opened &&
          EntryOffset(entry) >= options.data_file_size_bytes) {
        add(FindingCode::kDataFileTooShort);
      }
    }
  });
}

}  // namespace

void CheckData(CheckState& state) {
  if (!state.options.verify_data) return;
  if (!state.geo().data_file) {
    CheckCompressed(state);
    return;
  }
  if (!state.options.data_file_error.empty()) {
    state.findings.Add({.code = FindingCode::kDataFileMissing,
                        .structure = Structure::kDataFile,
                        .detail = state.options.data_file_error});
    state.Skip("the external data file", state.options.data_file_error);
  }
  CheckDataFileEntries(state);
}

}  // namespace qcow2check
