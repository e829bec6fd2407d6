// The numbers that follow from the header and that every table needs.
//
// A Geometry is made only from a header whose cluster_bits and refcount_order were found to be in
// range (GeometryOf in common/header.h), so nothing here can overflow or divide by zero.
#ifndef QCOW2CHECK_COMMON_GEOMETRY_H_
#define QCOW2CHECK_COMMON_GEOMETRY_H_

#include <cstdint>

#include "common/address.h"
#include "common/checked_math.h"

namespace qcow2check {

inline constexpr int kSubclustersPerCluster = 32;

struct Geometry {
  int version = 3;
  int cluster_bits = 16;     // kMinClusterBits..kMaxClusterBits
  int refcount_order = 4;    // 0..6
  bool extended_l2 = false;  // 16-byte L2 entries with a SubclusterBitmap
  bool data_file = false;    // guest clusters live in an external data file
  uint64_t virtual_size_bytes = 0;

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  uint64_t l2_entry_bytes() const { return extended_l2 ? 16 : 8; }
  uint64_t l2_entries() const { return cluster_size() / l2_entry_bytes(); }
  // Guest bytes that one L2 table maps; at most 2^57.
  uint64_t l2_guest_bytes() const { return l2_entries() << cluster_bits; }
  int refcount_bits() const { return 1 << refcount_order; }
  uint64_t refcount_max() const {
    return refcount_order == 6 ? ~uint64_t{0} : (uint64_t{1} << refcount_bits()) - 1;
  }
  uint64_t refcount_block_entries() const {
    return cluster_size() * 8 / static_cast<uint64_t>(refcount_bits());
  }
  // L1 entries that the virtual disk needs.
  uint64_t l1_entries_needed() const {
    return DivideRoundingUp(virtual_size_bytes, l2_guest_bytes());
  }
  ClusterIndex ClusterOf(HostOffset offset) const { return {offset.bytes >> cluster_bits}; }
  HostOffset OffsetOf(ClusterIndex cluster) const { return {cluster.value << cluster_bits}; }
  // Guest offset that entry `l2_index` of the table in L1 slot `l1_index` maps; saturates.
  GuestOffset GuestOffsetOf(uint64_t l1_index, uint64_t l2_index) const {
    return {
        SaturatingAdd(SaturatingMultiply(l1_index, l2_guest_bytes()), l2_index << cluster_bits)};
  }
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_GEOMETRY_H_
