// Text in lines that a terminal shows whole.
#ifndef QCOW2CHECK_CLI_WRAPPED_H_
#define QCOW2CHECK_CLI_WRAPPED_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace qcow2check {

inline constexpr int kTextReportColumns = 100;

// `text` in lines of at most kTextReportColumns (longer only for a longer word), each but the
// first behind `indent` spaces. The first starts at `column`.
std::string Wrapped(absl::string_view text, size_t indent, size_t column);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_WRAPPED_H_
