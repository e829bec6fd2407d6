// Undo files that may have been made to harm, and an image beside each.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fuzz/properties.h"
#include "fuzz/target.h"
#include "fuzz/undo_mutator.h"

namespace qcow2check::testing {

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  if (seed % 4 == 0) return size;
  UndoInput input = UndoInputOf({data, size});
  SealUndoLog(input, /*with_identity=*/seed % 2 == 0);
  const std::vector<uint8_t> bytes = Encode(input);
  if (bytes.size() > max_size) return size;
  std::copy(bytes.begin(), bytes.end(), data);
  return bytes.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Require(BrokenByUndo(UndoInputOf({data, size})));
  return 0;
}

}  // namespace qcow2check::testing
