// The three kinds of address in a qcow2 image, as types that do not mix.
#ifndef QCOW2CHECK_COMMON_ADDRESS_H_
#define QCOW2CHECK_COMMON_ADDRESS_H_

#include <compare>
#include <cstdint>

namespace qcow2check {

// A byte position in the image file.
struct HostOffset {
  uint64_t bytes = 0;
  friend auto operator<=>(const HostOffset&, const HostOffset&) = default;
};

// A byte position in the virtual disk (in a snapshot's L1 also in the VM state behind it).
struct GuestOffset {
  uint64_t bytes = 0;
  friend auto operator<=>(const GuestOffset&, const GuestOffset&) = default;
};

// The number of a host cluster: host offset / cluster size.
struct ClusterIndex {
  uint64_t value = 0;
  friend auto operator<=>(const ClusterIndex&, const ClusterIndex&) = default;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_ADDRESS_H_
