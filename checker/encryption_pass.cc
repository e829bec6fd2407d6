// The encryption pass: method, LUKS header pointer and LUKS header, without any key.
//
// Needs the header and its extensions. Claims the LUKS header region.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checker/check_state.h"
#include "common/limits.h"
#include "common/luks_header.h"

namespace qcow2check {
namespace {

// What is wrong with key slot `index`, whose material must lie between the header and the payload;
// empty if nothing. Slots that are off have their place, too.
std::string JudgeSlot(const LuksHeader& luks, size_t index) {
  const LuksKeySlot& slot = luks.slots[index];
  if (slot.state != kLuksSlotActive && slot.state != kLuksSlotDisabled) {
    return absl::StrCat("key slot ", index, " is neither on nor off");
  }
  if (slot.state == kLuksSlotActive && slot.iterations == 0) {
    return absl::StrCat("key slot ", index, " has no iterations");
  }
  if (slot.stripes == 0) return absl::StrCat("key slot ", index, " has no stripes");
  const uint64_t begin = uint64_t{slot.material_offset_sectors} * kSectorBytes;
  const auto end_of = [&luks](const LuksKeySlot& one) {
    return uint64_t{one.material_offset_sectors} * kSectorBytes +
           uint64_t{luks.key_bytes} * one.stripes;
  };
  if (begin < kLuksHeaderBytes) return absl::StrCat("key slot ", index, " lies on the header");
  if (end_of(slot) > uint64_t{luks.payload_offset_sectors} * kSectorBytes) {
    return absl::StrCat("key slot ", index, " reaches into the payload");
  }
  for (size_t i = 0; i < index; ++i) {
    const LuksKeySlot& other = luks.slots[i];
    if (begin < end_of(other) &&
        uint64_t{other.material_offset_sectors} * kSectorBytes < end_of(slot)) {
      return absl::StrCat("key slots ", i, " and ", index, " overlap");
    }
  }
  return "";
}

// What is wrong with the LUKS header in a region of `length` bytes; empty if nothing.
std::string JudgeLuksHeader(const LuksHeader& luks, uint64_t length) {
  if (!luks.magic_ok) return "it does not start with the LUKS magic";
  if (luks.version != 1) return absl::StrCat("LUKS version ", luks.version, ", not 1");
  if (uint64_t{luks.payload_offset_sectors} * kSectorBytes > length) {
    return absl::StrFormat("the payload starts at sector %d, outside the header",
                           luks.payload_offset_sectors);
  }
  if (luks.key_bytes == 0) return "its key has no bytes";
  if (luks.digest_iterations == 0) return "the digest of its key has no iterations";
  bool any_active = false;
  for (size_t i = 0; i < luks.slots.size(); ++i) {
    std::string wrong = JudgeSlot(luks, i);
    if (!wrong.empty()) return wrong;
    any_active |= luks.slots[i].state == kLuksSlotActive;
  }
  return any_active ? "" : "no key slot is in use";
}

}  // namespace

void CheckEncryption(CheckState& state) {
  const Header& header = state.header;
  const HeaderExtension* pointer = nullptr;
  for (const HeaderExtension& extension : state.extensions.extensions) {
    if (extension.type == kExtensionCrypto) pointer = &extension;
  }
  if (header.crypt_method > kCryptLuks) {
    state.AddFinding(FindingCode::kEncryptionInvalid, Structure::kHeader, 32, 4,
                     absl::StrCat("method ", header.crypt_method));
  } else if (header.crypt_method == kCryptLuks && pointer == nullptr) {
    state.AddFinding(FindingCode::kEncryptionInvalid, Structure::kHeader, 32, 4,
                     "the method is LUKS, but the pointer to the LUKS header is missing");
  } else if (header.crypt_method != kCryptLuks && pointer != nullptr) {
    state.AddFinding(FindingCode::kEncryptionInvalid, Structure::kHeaderExtension,
                     pointer->offset_bytes, 8 + uint64_t{pointer->length_bytes},
                     "there is a LUKS header, but the method is not LUKS");
  }
  if (pointer == nullptr) return;
  const std::optional<CryptoExtension> region = DecodeCryptoExtension(pointer->data);
  if (!region || region->length_bytes == 0) return;
  if (!IsAligned(region->offset, state.geo().cluster_size()) ||
      !state.Claim({Structure::kLuksHeader, region->offset, region->length_bytes, std::nullopt},
                   1) ||
      SaturatingAdd(region->offset, region->length_bytes) > state.file.size_bytes()) {
    state.AddFinding(FindingCode::kLuksHeaderInvalid, Structure::kLuksHeader, region->offset,
                     region->length_bytes, "its region is misaligned or not in the file");
    return;
  }
  std::vector<uint8_t> bytes(kLuksHeaderBytes);
  if (!state.Read(HostOffset{region->offset}, absl::MakeSpan(bytes), Structure::kLuksHeader)) {
    return;
  }
  std::string wrong = JudgeLuksHeader(DecodeLuksHeader(bytes), region->length_bytes);
  if (!wrong.empty()) {
    state.AddFinding(FindingCode::kLuksHeaderInvalid, Structure::kLuksHeader, region->offset,
                     region->length_bytes, std::move(wrong));
  }
}

}  // namespace qcow2check
