// One entry of the bitmap directory (specification, "Bitmap directory").
#ifndef QCOW2CHECK_COMMON_BITMAP_ENTRY_H_
#define QCOW2CHECK_COMMON_BITMAP_ENTRY_H_

#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "common/byte_order.h"
#include "common/checked_math.h"

namespace qcow2check {

inline constexpr uint64_t kBitmapFixedBytes = 24;
inline constexpr uint8_t kBitmapTypeDirtyTracking = 1;

enum BitmapFlag : uint32_t {
  kBitmapInUse = 1u << 0,
  kBitmapAuto = 1u << 1,
  kBitmapExtraDataCompatible = 1u << 2,
};
inline constexpr uint32_t kKnownBitmapFlags = 0x7;

struct BitmapEntry {
  uint64_t offset_bytes = 0;  // of the entry in the file
  uint64_t length_bytes = 0;  // with extra data, name and padding
  uint64_t table_offset = 0;
  uint32_t table_entries = 0;
  uint32_t flags = 0;
  uint8_t type = 0;
  uint8_t granularity_bits = 0;
  uint16_t name_bytes = 0;
  uint32_t extra_data_bytes = 0;
  std::string name;

  // Bytes of bitmap data that a disk of `virtual_size` needs; one bit a granule. Valid for
  // granularity_bits <= 63.
  uint64_t DataBytes(uint64_t virtual_size) const {
    return DivideRoundingUp(DivideRoundingUp(virtual_size, uint64_t{1} << granularity_bits), 8);
  }
};

// Decodes the fixed part (kBitmapFixedBytes); the name is for the caller to fill in.
inline BitmapEntry DecodeBitmapFixed(absl::Span<const uint8_t> fixed, uint64_t offset_bytes) {
  const uint8_t* p = fixed.data();
  BitmapEntry entry;
  entry.offset_bytes = offset_bytes;
  entry.table_offset = Load64(p);
  entry.table_entries = Load32(p + 8);
  entry.flags = Load32(p + 12);
  entry.type = p[16];
  entry.granularity_bits = p[17];
  entry.name_bytes = Load16(p + 18);
  entry.extra_data_bytes = Load32(p + 20);
  entry.length_bytes =
      RoundUp(kBitmapFixedBytes + uint64_t{entry.extra_data_bytes} + entry.name_bytes, 8);
  return entry;
}

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_BITMAP_ENTRY_H_
