// A check of an image, and all that is said about it.
#include <optional>

#include "fuzz/properties.h"
#include "fuzz/target.h"

namespace qcow2check::testing {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::optional<SparseFile> image = ImageOf({data, size});
  if (image.has_value()) Require(BrokenByCheck(*image));
  return 0;
}

}  // namespace qcow2check::testing
