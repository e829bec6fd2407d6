// Text that may come from an image or a file name, made fit for a terminal.
#ifndef QCOW2CHECK_CLI_PRINTABLE_H_
#define QCOW2CHECK_CLI_PRINTABLE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace qcow2check {

// `text` with everything that a terminal would act on instead of showing it (control characters,
// direction overrides, bytes that are no UTF-8) as \xNN. Other text stays as it is.
std::string Printable(absl::string_view text);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_PRINTABLE_H_
