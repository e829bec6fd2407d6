// Reads qtxt, the text form of disk images described in corpora/README.md.
// Time and memory grow with the size of the image that the text describes, at most 64 MiB.
#ifndef QCOW2CHECK_TESTS_IMAGE_TEXT_H_
#define QCOW2CHECK_TESTS_IMAGE_TEXT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qcow2check::testing {

// The image that `text` describes, or InvalidArgumentError with the line that is wrong.
absl::StatusOr<std::vector<uint8_t>> ParseImageText(absl::string_view text);

// The image in corpora/`name`, for example "seeds/listing-v2-4k.qtxt".
absl::StatusOr<std::vector<uint8_t>> LoadCorpusImage(absl::string_view name);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_IMAGE_TEXT_H_
