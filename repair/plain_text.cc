#include "repair/plain_text.h"

#include <cstddef>
#include <optional>

namespace qcow2check {
namespace {

// Bytes that follow the first byte of a character in UTF-8; nothing if none starts like that.
std::optional<size_t> FollowingBytes(uint8_t first) {
  if (first < 0x80) return 0;
  if (first >= 0xc2 && first < 0xe0) return 1;
  if (first >= 0xe0 && first < 0xf0) return 2;
  if (first >= 0xf0 && first < 0xf5) return 3;
  return std::nullopt;
}

}  // namespace

bool IsPlainText(absl::Span<const uint8_t> text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const std::optional<size_t> following = FollowingBytes(text[i]);
    if (text[i] < 0x20 || text[i] == 0x7f || !following || *following >= text.size() - i) {
      return false;
    }
    for (size_t end = i + *following; i < end;) {
      if (text[++i] >> 6 != 2) return false;
    }
  }
  return true;
}

}  // namespace qcow2check
