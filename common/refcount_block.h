// Entries of a refcount block: unsigned numbers of 1, 2, 4, 8, 16, 32 or 64 bits (specification,
// "Refcount block entry"). Below 8 bits the lowest bits of a byte come first.
#ifndef QCOW2CHECK_COMMON_REFCOUNT_BLOCK_H_
#define QCOW2CHECK_COMMON_REFCOUNT_BLOCK_H_

#include <cstdint>

#include "common/byte_order.h"

namespace qcow2check {

// Entry `index` of the block that starts at `block`; refcount_order 0..6.
inline uint64_t LoadRefcount(const uint8_t* block, uint64_t index, int refcount_order) {
  switch (refcount_order) {
    case 3:
      return block[index];
    case 4:
      return Load16(block + index * 2);
    case 5:
      return Load32(block + index * 4);
    case 6:
      return Load64(block + index * 8);
    default: {
      const int bits = 1 << refcount_order;
      const uint64_t bit = index * static_cast<uint64_t>(bits);
      return (block[bit / 8] >> (bit % 8)) & ((1u << bits) - 1);
    }
  }
}

// Stores the low bits of `value`; the caller has checked that it fits the width.
inline void StoreRefcount(uint8_t* block, uint64_t index, int refcount_order, uint64_t value) {
  switch (refcount_order) {
    case 3:
      block[index] = static_cast<uint8_t>(value);
      return;
    case 4:
      Store16(block + index * 2, static_cast<uint16_t>(value));
      return;
    case 5:
      Store32(block + index * 4, static_cast<uint32_t>(value));
      return;
    case 6:
      Store64(block + index * 8, value);
      return;
    default: {
      const int bits = 1 << refcount_order;
      const uint64_t bit = index * static_cast<uint64_t>(bits);
      const uint8_t mask = static_cast<uint8_t>(((1u << bits) - 1) << (bit % 8));
      uint8_t& byte = block[bit / 8];
      byte = static_cast<uint8_t>((byte & ~mask) | ((value << (bit % 8)) & mask));
      return;
    }
  }
}

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_REFCOUNT_BLOCK_H_
