// What a fuzzer's bytes mean: an image as it is, or the text of one (corpora/README.md), so that an
// input of a few hundred bytes can describe an image of 2^56.
#ifndef QCOW2CHECK_FUZZ_INPUT_H_
#define QCOW2CHECK_FUZZ_INPUT_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "tests/sparse_file.h"

namespace qcow2check::testing {

using Input = absl::Span<const uint8_t>;

// More is not worth its time: what goes wrong in large images goes wrong in small ones.
inline constexpr uint64_t kMaxStoredBytes = uint64_t{1} << 20;
// Images up to this size are also tried by what needs them whole: the reference checker, the views
// of a guest, crashes.
inline constexpr uint64_t kMaxWholeBytes = uint64_t{256} << 10;

// Whether the input is text: it starts with a comment or with "size ".
bool IsImageText(Input input);

// Nothing if it is text that describes no image, or one with too much in it.
std::optional<SparseFile> ImageOf(Input input);

// An input for the fuzzer of undo files: the length of the image (8 bytes, big endian), the image,
// the undo file.
struct UndoInput {
  SparseFile image;
  std::vector<uint8_t> log;
};
UndoInput UndoInputOf(Input input);
std::vector<uint8_t> Encode(const UndoInput& input);

// A number made of the input: the same input is always tried in the same ways.
uint64_t SeedOf(Input input);
uint64_t SeedOf(const SparseFile& image);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_FUZZ_INPUT_H_
