// `qcow2check inspect` for people: tables of what is stored, raw and decoded.
#ifndef QCOW2CHECK_CLI_INSPECT_TEXT_H_
#define QCOW2CHECK_CLI_INSPECT_TEXT_H_

#include <string>

#include "cli/inspect_result.h"

namespace qcow2check {

// The sections that were asked for. Text from the image is made fit for a terminal.
std::string InspectText(const InspectResult& result);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_INSPECT_TEXT_H_
