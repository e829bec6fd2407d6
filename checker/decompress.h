// Decompression of one compressed cluster, as a test of whether it can be read.
#ifndef QCOW2CHECK_CHECKER_DECOMPRESS_H_
#define QCOW2CHECK_CHECKER_DECOMPRESS_H_

#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "common/header.h"

namespace qcow2check {

struct DecompressResult {
  std::string error;            // empty: the output is exactly one cluster
  uint64_t consumed_bytes = 0;  // of the input
};

// Decompresses `input` (the sectors of the cluster, which may have other data behind the stream)
// into `output`, which has the size of one cluster. Deflate: a raw stream with a window of 2^12
// bytes, as QEMU reads it. Zstandard: frames until the cluster is full; the last one must end.
// Thread-safe; output bounded by one cluster whatever the input says.
DecompressResult DecompressCluster(absl::Span<const uint8_t> input, CompressionType type,
                                   absl::Span<uint8_t> output);

}  // namespace qcow2check

#endif  // QCOW2CHECK_CHECKER_DECOMPRESS_H_
