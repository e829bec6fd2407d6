// What the header fields mean, in words: "clusters of 4,096 bytes".
#ifndef QCOW2CHECK_CLI_HEADER_MEANING_H_
#define QCOW2CHECK_CLI_HEADER_MEANING_H_

#include <string>

#include "checker/inspect.h"

namespace qcow2check {

// What the field says in this header, in one line. Names from the image are not made printable.
std::string MeaningOf(const HeaderFieldView& field, const HeaderView& header);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CLI_HEADER_MEANING_H_
