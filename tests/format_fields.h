// The one table of the fields of the format: every field of every record that an image has on disk,
// by the record it is in, with its place there and its width; and the records of a built image.
//
// Header fields come from kHeaderFields. Where a record is in an image, and which images there are
// to find all of them, is in tests/field_images.h.
#ifndef QCOW2CHECK_TESTS_FORMAT_FIELDS_H_
#define QCOW2CHECK_TESTS_FORMAT_FIELDS_H_

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"

namespace qcow2check::testing {

enum class FieldUse {
  kNumber,  // or flags, or text
  kOffset,  // leads to a place in the file
};

// Bits of a big-endian word.
struct FormatField {
  absl::string_view record;   // "snapshot table entry"
  absl::string_view name;     // "l1_table_offset"
  uint64_t offset_bytes = 0;  // of the word, from the start of the record
  int word_bytes = 8;         // 1 to 8
  int lowest_bit = 0;         // of the word
  int bits = 64;
  FieldUse use = FieldUse::kNumber;
  // A longer field (a text, a digest) has these bytes behind the word, which stands for all of it.
  uint64_t more_bytes = 0;
};

std::vector<FormatField> AllFormatFields();
// Those of one record.
std::vector<FormatField> FieldsOf(absl::string_view record);

// The field of the record at `record_offset`; the bytes must be there.
uint64_t LoadField(const std::vector<uint8_t>& image, uint64_t record_offset,
                   const FormatField& field);
void StoreField(std::vector<uint8_t>& image, uint64_t record_offset, const FormatField& field,
                uint64_t value);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_FORMAT_FIELDS_H_
