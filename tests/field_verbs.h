// Field x verb: what is done to every field of the format, and which of the results no checker can
// know to be damage.
#ifndef QCOW2CHECK_TESTS_FIELD_VERBS_H_
#define QCOW2CHECK_TESTS_FIELD_VERBS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tests/field_images.h"
#include "tests/format_fields.h"
#include "tests/image_builder.h"

namespace qcow2check::testing {

// A value in a field. Verbs that would give a field a value that it has, or that an earlier verb
// gives it, make no pair; nor do addresses that the field has no room for.
struct FieldPair {
  absl::string_view image;
  absl::string_view record;  // the name of its place
  FormatField field;
  absl::string_view verb;
  bool is_address = false;    // the verb is the address of another structure
  uint64_t offset_bytes = 0;  // of the record
  uint64_t old_value = 0;
  uint64_t new_value = 0;

  std::string Words() const;  // "version 3, L1 entry: offset, zero: 0x8 becomes 0x0"
};
std::vector<FieldPair> PairsOf(absl::string_view image_name, const BuiltImage& image);

// The image with the pair's value.
std::vector<uint8_t> Damaged(const BuiltImage& image, const FieldPair& pair);

// Pairs that are legal, or that look like something legal, and why no checker can know. The lists
// are "", which is all of them, "one, other", or "!one, other", which is all but those.
struct ReviewedPairs {
  absl::string_view images;
  absl::string_view records;
  absl::string_view field;
  absl::string_view verbs;  // "addresses" are those of all structures
  absl::string_view why;
  bool found_by_verify_data = false;  // --verify-data finds them all the same
};
absl::Span<const ReviewedPairs> ReviewedList();
bool Matches(const ReviewedPairs& line, const FieldPair& pair);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_FIELD_VERBS_H_
