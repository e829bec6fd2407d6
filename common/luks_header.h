// The part of a LUKS1 header that can be judged without a key: magic, version, and where the
// payload and the key slots' material are (LUKS1 On-Disk Format Specification, "phdr").
#ifndef QCOW2CHECK_COMMON_LUKS_HEADER_H_
#define QCOW2CHECK_COMMON_LUKS_HEADER_H_

#include <algorithm>
#include <array>
#include <cstdint>

#include "absl/types/span.h"
#include "common/byte_order.h"

namespace qcow2check {

inline constexpr size_t kLuksHeaderBytes = 592;
inline constexpr uint32_t kLuksSlotActive = 0x00ac71f3;
inline constexpr uint32_t kLuksSlotDisabled = 0x0000dead;

struct LuksKeySlot {
  uint32_t state = 0;
  uint32_t iterations = 0;
  uint32_t material_offset_sectors = 0;
  uint32_t stripes = 0;
};

struct LuksHeader {
  bool magic_ok = false;
  uint16_t version = 0;
  uint32_t payload_offset_sectors = 0;
  uint32_t key_bytes = 0;
  uint32_t digest_iterations = 0;
  std::array<LuksKeySlot, 8> slots;
};

// `bytes` must hold kLuksHeaderBytes.
inline LuksHeader DecodeLuksHeader(absl::Span<const uint8_t> bytes) {
  static constexpr std::array<uint8_t, 6> kLuksMagic = {'L', 'U', 'K', 'S', 0xba, 0xbe};
  const uint8_t* p = bytes.data();
  LuksHeader header;
  header.magic_ok = std::equal(kLuksMagic.begin(), kLuksMagic.end(), p);
  header.version = Load16(p + 6);
  header.payload_offset_sectors = Load32(p + 104);
  header.key_bytes = Load32(p + 108);
  header.digest_iterations = Load32(p + 164);
  for (size_t i = 0; i < header.slots.size(); ++i) {
    const uint8_t* slot = p + 208 + 48 * i;
    header.slots[i] = {Load32(slot), Load32(slot + 4), Load32(slot + 40), Load32(slot + 44)};
  }
  return header;
}

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_LUKS_HEADER_H_
