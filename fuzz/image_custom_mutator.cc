// The mutator of the targets whose inputs are images: most changes know the format, some do not.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fuzz/image_mutator.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  if (seed % 8 == 0) return LLVMFuzzerMutate(data, size, max_size);
  const std::vector<uint8_t> bytes = qcow2check::testing::MutateImage({data, size}, max_size, seed);
  if (bytes.empty()) return LLVMFuzzerMutate(data, size, max_size);
  std::copy(bytes.begin(), bytes.end(), data);
  return bytes.size();
}
