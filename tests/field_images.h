// Images that have, together, every record of the format, and where each record is in them.
//
// All are sound, and small: a few dozen clusters, most of 4 KiB.
#ifndef QCOW2CHECK_TESTS_FIELD_IMAGES_H_
#define QCOW2CHECK_TESTS_FIELD_IMAGES_H_

#include <ostream>
#include <vector>

#include "absl/strings/string_view.h"
#include "tests/image_builder.h"

namespace qcow2check::testing {

struct FieldImage {
  absl::string_view name;  // "bitmaps"
  ImageOptions options;
};
std::vector<FieldImage> FieldImages();
// For gtest.
inline void PrintTo(const FieldImage& image, std::ostream* out) { *out << image.name; }

// A record in one of the images.
struct RecordPlace {
  absl::string_view image;
  absl::string_view name;    // "L2 entry of a zero cluster"
  absl::string_view record;  // as in tests/format_fields.h
  Region (*find)(const BuiltImage& image);
};
std::vector<RecordPlace> RecordsOf(absl::string_view image);

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_FIELD_IMAGES_H_
