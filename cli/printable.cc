#include "cli/printable.h"

#include <cstdint>

#include "absl/strings/str_format.h"

namespace qcow2check {
namespace {

struct Character {
  uint32_t code_point = 0;
  size_t bytes = 0;  // 0: no valid UTF-8
};

Character FirstCharacter(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (byte(0) < 0x80) return {byte(0), 1};
  const size_t bytes = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
  static constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (byte(0) < 0xc2 || byte(0) > 0xf4 || text.size() < bytes) return {};
  uint32_t code_point = byte(0) & (0xffu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    code_point = code_point << 6 | (byte(i) & 0x3f);
  }
  const bool surrogate = code_point >= 0xd800 && code_point < 0xe000;
  if (code_point < kSmallest[bytes] || code_point > 0x10ffff || surrogate) return {};
  return {code_point, bytes};
}

bool IsShown(uint32_t code_point) {
  const bool control = code_point < 0x20 || (code_point >= 0x7f && code_point < 0xa0);
  // Line separators, and what turns the direction of writing around.
  const bool direction = (code_point >= 0x2028 && code_point <= 0x202e) ||
                         (code_point >= 0x2066 && code_point <= 0x2069) || code_point == 0x200e ||
                         code_point == 0x200f;
  return !control && !direction;
}

}  // namespace

std::string Printable(absl::string_view text) {
  std::string shown;
  while (!text.empty()) {
    const Character character = FirstCharacter(text);
    const size_t bytes = character.bytes == 0 ? 1 : character.bytes;
    if (character.bytes != 0 && IsShown(character.code_point)) {
      shown.append(text.data(), bytes);
    } else {
      for (size_t i = 0; i < bytes; ++i) {
        absl::StrAppendFormat(&shown, "\\x%02x", static_cast<uint8_t>(text[i]));
      }
    }
    text.remove_prefix(bytes);
  }
  return shown;
}

}  // namespace qcow2check
