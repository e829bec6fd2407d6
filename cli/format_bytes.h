// Byte counts and guest ranges for people: "507 MiB", "0-512 MiB".
#ifndef QCOW2CHECK_CLI_FORMAT_BYTES_H_
#define QCOW2CHECK_CLI_FORMAT_BYTES_H_

#include <cstdint>
#include <string>

namespace qcow2check {

// In the largest unit of which there is at least one, with at most two decimals: "1.25 GiB".
std::string FormatBytes(uint64_t bytes);

// 1234567 -> "1,234,567".
std::string FormatCount(uint64_t count);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_FORMAT_BYTES_H_
