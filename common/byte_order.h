// Big-endian loads and stores: every number in a qcow2 image is big endian.
//
// All functions work on unaligned bytes. The caller guarantees that the bytes exist.
#ifndef QCOW2CHECK_COMMON_BYTE_ORDER_H_
#define QCOW2CHECK_COMMON_BYTE_ORDER_H_

#include <bit>
#include <cstdint>
#include <cstring>

namespace qcow2check {

static_assert(std::endian::native == std::endian::little ||
              std::endian::native == std::endian::big);

inline uint16_t ToBigEndian(uint16_t value) {
  return std::endian::native == std::endian::big ? value : __builtin_bswap16(value);
}
inline uint32_t ToBigEndian(uint32_t value) {
  return std::endian::native == std::endian::big ? value : __builtin_bswap32(value);
}
inline uint64_t ToBigEndian(uint64_t value) {
  return std::endian::native == std::endian::big ? value : __builtin_bswap64(value);
}

template <typename T>
inline T LoadBigEndian(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return ToBigEndian(value);
}

inline uint16_t Load16(const uint8_t* bytes) { return LoadBigEndian<uint16_t>(bytes); }
inline uint32_t Load32(const uint8_t* bytes) { return LoadBigEndian<uint32_t>(bytes); }
inline uint64_t Load64(const uint8_t* bytes) { return LoadBigEndian<uint64_t>(bytes); }

template <typename T>
inline void StoreBigEndian(uint8_t* bytes, T value) {
  value = ToBigEndian(value);
  std::memcpy(bytes, &value, sizeof(value));
}

inline void Store16(uint8_t* bytes, uint16_t value) { StoreBigEndian(bytes, value); }
inline void Store32(uint8_t* bytes, uint32_t value) { StoreBigEndian(bytes, value); }
inline void Store64(uint8_t* bytes, uint64_t value) { StoreBigEndian(bytes, value); }

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_BYTE_ORDER_H_
