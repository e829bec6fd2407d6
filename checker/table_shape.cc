#include "checker/table_shape.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/byte_order.h"
#include "common/limits.h"
#include "common/refcount_block.h"
#include "common/table_entry.h"

namespace qcow2check {
namespace {

constexpr uint64_t kEnoughEntries = 8;
constexpr uint64_t kAbsurdBytes = uint64_t{1} << 40;

bool HasMagic(absl::Span<const uint8_t> bytes, size_t offset, absl::string_view magic) {
  return bytes.size() >= offset + magic.size() &&
         std::memcmp(bytes.data() + offset, magic.data(), magic.size()) == 0;
}

bool IsText(absl::Span<const uint8_t> bytes) {
  const size_t length = std::min<size_t>(bytes.size(), 4096);
  const auto printable =
      std::count_if(bytes.begin(), bytes.begin() + static_cast<int64_t>(length), [](uint8_t byte) {
        return (byte >= 0x20 && byte < 0x7f) || byte == '\n' || byte == '\r' || byte == '\t';
      });
  return length != 0 && static_cast<size_t>(printable) * 10 >= length * 9;
}

}  // namespace

TableScan ScanTable(absl::Span<const uint8_t> table, const Geometry& geometry,
                    uint64_t file_bytes) {
  TableScan scan;
  const uint64_t step = geometry.l2_entry_bytes();
  const uint64_t limit = geometry.data_file ? kOffsetMask + kSectorBytes : file_bytes;
  const uint64_t absurd = SaturatingAdd(SaturatingMultiply(limit, 64), kAbsurdBytes);
  uint64_t candidate = 0, lead = 0;  // majority vote
  for (uint64_t at = 0; at + step <= table.size(); at += step) {
    const uint64_t entry = Load64(&table[at]);
    if (entry == 0) continue;
    ++scan.used;
    const L2EntryKind kind = KindOfL2Entry(entry, geometry);
    uint64_t offset = EntryOffset(entry);
    bool malformed = false;
    if (kind == L2EntryKind::kCompressed) {
      offset = DecodeCompressed(entry, geometry.cluster_bits).offset_bytes;
      // A writer that sets COPIED everywhere is no reason to take a table for something else.
      malformed = (offset & ~(kOffsetMask | 511)) != 0 || (IsCopied(entry) && offset >= limit);
    } else {
      const bool zero_bit_allowed = geometry.version >= 3 || (entry & kZeroBit) == 0;
      malformed = (entry & kStandardL2ReservedMask) != 0 || !zero_bit_allowed ||
                  !IsAligned(offset, geometry.cluster_size());
    }
    scan.malformed += malformed ? 1 : 0;
    if (kind == L2EntryKind::kUnallocated || kind == L2EntryKind::kZeroPlain) continue;
    ++scan.allocated;
    if (!malformed && offset >= limit) {
      ++scan.outside;
      scan.absurd += offset >= absurd ? 1 : 0;
    }
    if (lead == 0) candidate = entry;
    lead = entry == candidate ? lead + 1 : lead - 1;
  }
  if (lead != 0) {
    uint64_t equal = 0;
    for (uint64_t at = 0; at + step <= table.size(); at += step) {
      equal += Load64(&table[at]) == candidate ? 1 : 0;
    }
    if (equal * 2 > scan.used) scan.repeated = equal;
  }
  return scan;
}

bool IsNoTable(const TableScan& scan, bool is_refcount_block) {
  const uint64_t impossible = scan.malformed + scan.absurd;
  const uint64_t enough = is_refcount_block ? 1 : kEnoughEntries;
  return (impossible >= enough && impossible * 2 > scan.used) || scan.repeated >= kEnoughEntries;
}

// Refcounts are small numbers; nearly all of the numbers of this width that are not 0 are <= 16.
bool LooksLikeRefcounts(absl::Span<const uint8_t> cluster, int refcount_order) {
  const uint64_t entries = cluster.size() * 8 >> refcount_order;
  const uint64_t step = std::max<uint64_t>(1, entries / 65536);
  uint64_t used = 0, small = 0;
  for (uint64_t i = 0; i < entries; i += step) {
    const uint64_t count = LoadRefcount(cluster.data(), i, refcount_order);
    used += count != 0 ? 1 : 0;
    small += count != 0 && count <= 16 ? 1 : 0;
  }
  return used >= kEnoughEntries && small * 20 >= used * 19;
}

std::string DescribeContent(absl::Span<const uint8_t> cluster, const Geometry& geometry) {
  if (std::all_of(cluster.begin(), cluster.end(), [](uint8_t byte) { return byte == 0; })) {
    return "zeros";
  }
  if (HasMagic(cluster, 0,
               "\x7f"
               "ELF")) {
    return "an ELF program";
  }
  if (HasMagic(cluster, 3, "NTFS    ")) return "an NTFS file system";
  if (HasMagic(cluster, 0, "XFSB")) return "an XFS file system";
  if (HasMagic(cluster, 0x438, "\x53\xef")) return "an ext2/3/4 file system";
  if (HasMagic(cluster, 0, "QFI\xfb")) return "a qcow2 header";
  if (IsText(cluster)) return "text";
  if (LooksLikeRefcounts(cluster, geometry.refcount_order)) return "refcounts";
  return "other data";
}

bool ProvesToBeL2Table(CheckState& state, uint64_t offset, bool may_be_cut_off) {
  const Geometry& geometry = state.geo();
  std::vector<uint8_t> cluster(std::min(geometry.cluster_size(), kMaxPieceBytes));
  if (!state.Read(HostOffset{offset}, absl::MakeSpan(cluster), Structure::kL2Table)) return false;
  const TableScan scan = ScanTable(cluster, geometry, state.file.size_bytes());
  return scan.allocated != 0 && scan.malformed == 0 &&
         (scan.outside == 0 || (may_be_cut_off && scan.outside * 2 < scan.allocated)) &&
         scan.repeated < kEnoughEntries;
}

bool CouldBeEmptyL2Table(CheckState& state, uint64_t offset) {
  const Geometry& geometry = state.geo();
  std::vector<uint8_t> cluster(std::min(geometry.cluster_size(), kMaxPieceBytes));
  if (!state.Read(HostOffset{offset}, absl::MakeSpan(cluster), Structure::kL2Table)) return false;
  const TableScan scan = ScanTable(cluster, geometry, state.file.size_bytes());
  return scan.allocated == 0 && scan.malformed == 0;
}

}  // namespace qcow2check
