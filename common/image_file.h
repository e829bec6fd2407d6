// A file that holds an image, read-only. The writable kind is another type, on purpose: nothing
// that is handed an ImageFile can change it.
#ifndef QCOW2CHECK_COMMON_IMAGE_FILE_H_
#define QCOW2CHECK_COMMON_IMAGE_FILE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/address.h"

namespace qcow2check {

// A stretch of the file: [begin, end), both in bytes.
struct Extent {
  uint64_t begin_bytes = 0;
  uint64_t end_bytes = 0;

  bool empty() const { return begin_bytes >= end_bytes; }
};

class ImageFile {
 public:
  virtual ~ImageFile() = default;

  // The length when the file was opened.
  virtual uint64_t size_bytes() const = 0;

  // Fills `dst` from `offset`. Bytes past the end of the file are zero, as QEMU reads them. On a
  // read error the content of `dst` is unspecified and the status says why (kDataLoss).
  // Thread-safe.
  virtual absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const = 0;

  // The first stretch at or after `offset` that may hold something other than zeros; empty if
  // there is none before the end of the file. Files that cannot tell return all that is left.
  // Thread-safe.
  virtual Extent NextData(HostOffset offset) const {
    return {offset.bytes, size_bytes() > offset.bytes ? size_bytes() : offset.bytes};
  }
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_IMAGE_FILE_H_
