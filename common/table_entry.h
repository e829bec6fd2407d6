// L1, L2, refcount table and bitmap table entries: one 64-bit word each (specification, "Cluster
// mapping", "Refcounts" and "Bitmap table"; L2 entries of 16 bytes have a second word).
//
// Every function is pure bit arithmetic on a host-order word; none judges whether an offset is
// aligned or inside the file.
#ifndef QCOW2CHECK_COMMON_TABLE_ENTRY_H_
#define QCOW2CHECK_COMMON_TABLE_ENTRY_H_

#include <cstdint>

#include "common/geometry.h"

namespace qcow2check {

inline constexpr uint64_t kCopiedBit = uint64_t{1} << 63;
inline constexpr uint64_t kCompressedBit = uint64_t{1} << 62;
inline constexpr uint64_t kZeroBit = 1;
// Bits 9-55: the host offset in L1, standard L2 and bitmap table entries.
inline constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
inline constexpr uint64_t kL1ReservedMask = 0x7f000000000001ff;
inline constexpr uint64_t kStandardL2ReservedMask = 0x3f000000000001fe;
// Bits 9-63: a refcount table entry's block offset has no upper limit but its alignment.
inline constexpr uint64_t kRefcountTableOffsetMask = ~uint64_t{0x1ff};
inline constexpr uint64_t kRefcountTableReservedMask = 0x1ff;
inline constexpr uint64_t kBitmapTableReservedMask = 0xff000000000001fe;

// A standard (not compressed) L2 entry, or an L1 entry.
inline uint64_t EntryOffset(uint64_t entry) { return entry & kOffsetMask; }
inline bool IsCopied(uint64_t entry) { return (entry & kCopiedBit) != 0; }
inline bool IsCompressed(uint64_t entry) { return (entry & kCompressedBit) != 0; }

enum class L2EntryKind {
  kUnallocated,    // reads from the backing file, or as zeros
  kZeroPlain,      // reads as zeros, no cluster
  kZeroAllocated,  // reads as zeros, a cluster is reserved
  kNormal,         // reads from the cluster
  kCompressed,
};

// The kind of an L2 entry. Version 2 images have no zero flag, but QEMU honours the bit there as
// well, so it is not masked (the finding zero-flag-not-allowed reports it). With extended L2
// entries bit 0 means nothing: the second word says what reads as zeros.
inline L2EntryKind KindOfL2Entry(uint64_t entry, const Geometry& geometry) {
  if (IsCompressed(entry)) return L2EntryKind::kCompressed;
  const bool has_offset = EntryOffset(entry) != 0;
  if (!geometry.extended_l2 && (entry & kZeroBit) != 0) {
    return has_offset ? L2EntryKind::kZeroAllocated : L2EntryKind::kZeroPlain;
  }
  if (has_offset) return L2EntryKind::kNormal;
  // Host offset 0 is a valid place in an external data file; COPIED tells it from "none".
  return geometry.data_file && IsCopied(entry) ? L2EntryKind::kNormal : L2EntryKind::kUnallocated;
}

// Where a compressed cluster's bytes are ("Compressed Clusters Descriptor").
struct CompressedRange {
  uint64_t offset_bytes;  // any alignment
  uint64_t length_bytes;  // at least 1; up to two clusters; ends at a sector boundary

  uint64_t end_bytes() const { return offset_bytes + length_bytes; }
  friend bool operator==(const CompressedRange&, const CompressedRange&) = default;
};

inline CompressedRange DecodeCompressed(uint64_t entry, int cluster_bits) {
  const int offset_bits = 70 - cluster_bits;
  const uint64_t offset = entry & ((uint64_t{1} << offset_bits) - 1);
  const uint64_t extra_sectors = (entry & ~(kCompressedBit | kCopiedBit)) >> offset_bits;
  return {offset, (extra_sectors + 1) * 512 - (offset & 511)};
}

inline uint64_t EncodeCompressed(CompressedRange range, int cluster_bits) {
  const uint64_t sectors = ((range.offset_bytes & 511) + range.length_bytes + 511) / 512;
  return kCompressedBit | ((sectors - 1) << (70 - cluster_bits)) | range.offset_bytes;
}

// The second word of an extended L2 entry.
struct SubclusterBitmap {
  uint32_t allocated = 0;       // bit i: subcluster i has data in the cluster
  uint32_t reads_as_zeros = 0;  // bit i: subcluster i reads as zeros
};

inline SubclusterBitmap DecodeSubclusterBitmap(uint64_t word) {
  return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)};
}

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_TABLE_ENTRY_H_
