#include "cli/format_bytes.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace qcow2check {

std::string FormatBytes(uint64_t bytes) {
  static constexpr std::array<absl::string_view, 7> kUnits = {"bytes", "KiB", "MiB", "GiB",
                                                              "TiB",   "PiB", "EiB"};
  size_t unit = 0;
  while (unit + 1 < kUnits.size() && (bytes >> (10 * (unit + 1))) != 0) ++unit;
  if (unit == 0) return absl::StrCat(bytes, " ", bytes == 1 ? "byte" : "bytes");
  const double value = static_cast<double>(bytes) / static_cast<double>(uint64_t{1} << (10 * unit));
  std::string digits = absl::StrFormat("%.2f", value);
  while (digits.back() == '0') digits.pop_back();
  if (digits.back() == '.') digits.pop_back();
  return absl::StrCat(digits, " ", kUnits[unit]);
}

std::string FormatCount(uint64_t count) {
  const std::string digits = absl::StrCat(count);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i != 0 && (digits.size() - i) % 3 == 0) text.push_back(',');
    text.push_back(digits[i]);
  }
  return text;
}

std::string Counted(uint64_t count, absl::string_view one, absl::string_view many) {
  return absl::StrCat(FormatCount(count), " ", count == 1 ? one : many);
}

std::string HexBytes(absl::Span<const uint8_t> bytes) {
  return absl::StrJoin(
      bytes, " ", [](std::string* out, uint8_t byte) { absl::StrAppendFormat(out, "%02x", byte); });
}

}  // namespace qcow2check
