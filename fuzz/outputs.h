// What must be true of everything that is printed, whatever the image has for names.
#ifndef QCOW2CHECK_FUZZ_OUTPUTS_H_
#define QCOW2CHECK_FUZZ_OUTPUTS_H_

#include <string>

#include "absl/strings/string_view.h"

namespace qcow2check::testing {

// It is JSON in UTF-8; otherwise a line is added to `broken`.
void CheckJson(absl::string_view json, std::string& broken);

// Nothing in it but line feeds that a terminal acts upon.
void CheckText(absl::string_view text, std::string& broken);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_FUZZ_OUTPUTS_H_
