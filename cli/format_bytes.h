// Numbers and bytes for people: "507 MiB", "1,234 clusters", "51 46 49 fb".
#ifndef QCOW2CHECK_CLI_FORMAT_BYTES_H_
#define QCOW2CHECK_CLI_FORMAT_BYTES_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace qcow2check {

// In the largest unit of which there is at least one, with at most two decimals: "1.25 GiB".
std::string FormatBytes(uint64_t bytes);

// 1234567 -> "1,234,567".
std::string FormatCount(uint64_t count);

// "1 entry", "8,192 entries".
std::string Counted(uint64_t count, absl::string_view one, absl::string_view many);

// "51 46 49 fb".
std::string HexBytes(absl::Span<const uint8_t> bytes);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_FORMAT_BYTES_H_
