// `qcow2check inspect --json`: one object with the sections that were asked for.
#ifndef QCOW2CHECK_CLI_INSPECT_JSON_H_
#define QCOW2CHECK_CLI_INSPECT_JSON_H_

#include <string>

#include "absl/strings/string_view.h"
#include "cli/inspect_result.h"

namespace qcow2check {

// Numbers are numbers, table entries are strings of their 64 bits ("0x8000000000050000"). A
// section that cannot be shown is {"error": why}. The output is ASCII.
std::string InspectJson(const InspectResult& result);

// For what is no image, or wrong usage: {"filename": ..., "error": why}.
std::string InspectErrorJson(const std::string& filename, absl::string_view error);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_INSPECT_JSON_H_
