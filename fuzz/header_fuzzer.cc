// The records of the format: whatever the bytes are, they decode to something or to nothing.
#include "fuzz/properties.h"
#include "fuzz/target.h"

namespace qcow2check::testing {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Require(BrokenByRecords({data, size}));
  return 0;
}

}  // namespace qcow2check::testing
