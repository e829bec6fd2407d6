// Reads and writes qtxt, the text form of disk images described in corpora/README.md.
// Time and memory grow with the bytes that the text names, and with the size of an image that is
// kept whole; both at most 64 MiB.
#ifndef QCOW2CHECK_TESTS_IMAGE_TEXT_H_
#define QCOW2CHECK_TESTS_IMAGE_TEXT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tests/sparse_file.h"

namespace qcow2check::testing {

// The image that `text` describes, or InvalidArgumentError with the line that is wrong.
absl::StatusOr<std::vector<uint8_t>> ParseImageText(absl::string_view text);

// The same for an image of up to 2^56 bytes, kept sparse.
absl::StatusOr<SparseFile> ParseSparseImage(absl::string_view text);

// The text of an image: what is not zero, in lines of up to 16 bytes, equal words folded.
std::string FormatImageText(const SparseFile& image);

// The image in corpora/`name`, for example "seeds/listing-v2-4k.qtxt".
absl::StatusOr<std::vector<uint8_t>> LoadCorpusImage(absl::string_view name);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_IMAGE_TEXT_H_
