// Limits, each with its reason. "QEMU" marks a limit of the reference implementation: an image
// beyond it cannot be used there, but is examined here all the same.
#ifndef QCOW2CHECK_COMMON_LIMITS_H_
#define QCOW2CHECK_COMMON_LIMITS_H_

#include <cstdint>

namespace qcow2check {

// Specification: cluster_bits must not be less than 9.
inline constexpr uint32_t kMinClusterBits = 9;
// QEMU: 2 MiB clusters.
inline constexpr uint32_t kQemuMaxClusterBits = 21;
// Ours: a 1 GiB cluster. With more, one L2 table would map over 2^57 bytes and the compressed
// descriptor would have no room for an offset.
inline constexpr uint32_t kMaxClusterBits = 30;
// Specification: the extended L2 needs subclusters of at least 512 bytes, 32 to a cluster.
inline constexpr uint32_t kMinClusterBitsExtendedL2 = 14;
// Specification: refcount_order must not exceed 6 (64 bits).
inline constexpr uint32_t kMaxRefcountOrder = 6;
// QEMU: 32 MiB of active or snapshot L1 table.
inline constexpr uint64_t kQemuMaxL1Entries = (32u << 20) / 8;
// QEMU: 8 MiB of refcount table.
inline constexpr uint64_t kQemuMaxRefcountTableBytes = 8u << 20;
// QEMU: snapshots, bytes of extra data per snapshot, bytes of snapshot table.
inline constexpr uint32_t kQemuMaxSnapshots = 65536;
inline constexpr uint32_t kQemuMaxSnapshotExtraBytes = 1024;
inline constexpr uint64_t kQemuMaxSnapshotTableBytes = uint64_t{1024} * kQemuMaxSnapshots;
// QEMU: bitmaps, bytes of name, bytes of directory, bytes of one bitmap's data.
inline constexpr uint32_t kQemuMaxBitmaps = 65535;
inline constexpr uint32_t kMaxBitmapNameBytes = 1023;
inline constexpr uint64_t kQemuMaxBitmapDirectoryBytes = uint64_t{1024} * kQemuMaxBitmaps;
inline constexpr uint64_t kQemuMaxBitmapTableEntries = 0x8000000;
inline constexpr int kQemuMinGranularityBits = 9;
inline constexpr int kQemuMaxGranularityBits = 31;
// Specification: the backing file name has at most 1023 bytes.
inline constexpr uint32_t kMaxBackingNameBytes = 1023;
// QEMU: virtual sizes are whole sectors.
inline constexpr uint64_t kSectorBytes = 512;
// Ours: tables are read in pieces of at most this many bytes, so that no buffer is sized by a
// claim in the image. One whole L2 table at QEMU's largest cluster size.
inline constexpr uint64_t kMaxPieceBytes = 2u << 20;
// Ours: the most host clusters a file may have. Above it (1 PiB of 512-byte clusters, 128 PiB of
// 64 KiB clusters) even the top level of the refcount map would not be small.
inline constexpr uint64_t kMaxFileClusters = uint64_t{1} << 41;
// Ours: depth of a backing chain that --chain follows; chains of real products stay below 50.
inline constexpr int kMaxChainDepth = 200;

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_LIMITS_H_
