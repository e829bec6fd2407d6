// What `qcow2check inspect` shows of an image.
#ifndef QCOW2CHECK_TESTS_INSPECTED_IMAGE_H_
#define QCOW2CHECK_TESTS_INSPECTED_IMAGE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "tests/program.h"

namespace qcow2check::testing {

using Json = nlohmann::json;

// Runs the command on a file with these bytes.
CommandResult Inspect(absl::Span<const uint8_t> bytes, std::vector<std::string> options);
// The text or the JSON; the command must succeed.
std::string TextOf(absl::Span<const uint8_t> bytes, std::vector<std::string> options);
Json JsonOf(absl::Span<const uint8_t> bytes, std::vector<std::string> options);
// What was printed as JSON; a test failure if it is none.
Json JsonIn(const CommandResult& result);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_INSPECTED_IMAGE_H_
