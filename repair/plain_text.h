// Names in an image: can these bytes be one?
#ifndef QCOW2CHECK_REPAIR_PLAIN_TEXT_H_
#define QCOW2CHECK_REPAIR_PLAIN_TEXT_H_

#include <cstdint>

#include "absl/types/span.h"

namespace qcow2check {

// UTF-8 without control characters; may be empty.
bool IsPlainText(absl::Span<const uint8_t> text);

}  // namespace qcow2check

#endif  // QCOW2CHECK_REPAIR_PLAIN_TEXT_H_
