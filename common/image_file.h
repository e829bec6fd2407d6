// A file that holds an image, read-only. The writable kind is another type, on purpose: nothing
// that is handed an ImageFile can change it.
#ifndef QCOW2CHECK_COMMON_IMAGE_FILE_H_
#define QCOW2CHECK_COMMON_IMAGE_FILE_H_

#include <cstdint>
#include <vector>

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

// One of several reads that may be done in any order, or at the same time.
struct ReadRequest {
  HostOffset offset;
  absl::Span<uint8_t> dst;
  absl::Status status;  // set by ReadMany: as ReadAt's
};

class ImageFile {
 public:
  virtual ~ImageFile() = default;

  // The length when the file was opened, or as we have changed it since.
  virtual uint64_t size_bytes() const = 0;

  // Fills `dst` from `offset`. Bytes past the end of the file are zero, as QEMU reads them. On a
  // read error the content of `dst` is unspecified and the status says why (kDataLoss).
  // Thread-safe.
  virtual absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const = 0;

  // Does all of `requests`: as if by ReadAt for each, but a file whose reads take long to come back
  // has them all under way at once. Thread-safe.
  virtual void ReadMany(absl::Span<ReadRequest> requests) const {
    for (ReadRequest& request : requests) request.status = ReadAt(request.offset, request.dst);
  }

  // Whether a read is mostly waiting (for a network), so that more threads than there are
  // processors are worth having.
  virtual bool is_remote() const { return false; }

  // OK while the file is there as it was opened. kUnavailable, and why, once the connection to its
  // server is lost, or somebody else has made it longer or shorter: then what was read is of no
  // one state of the file, and what was found out from it is worth nothing. Thread-safe.
  virtual absl::Status availability() const { return absl::OkStatus(); }

  // The first stretch at or after `offset` that may hold something other than zeros; empty if
  // there is none before the end of the file. Files that cannot tell return all that is left.
  // Thread-safe.
  virtual Extent NextData(HostOffset offset) const {
    return {offset.bytes, size_bytes() > offset.bytes ? size_bytes() : offset.bytes};
  }

  // About how many bytes of the file may be something other than zeros; its size if it cannot tell.
  virtual uint64_t allocated_bytes() const { return size_bytes(); }

  // Whether the stretch, which is in the file, is known to read as zeros; costs less than a read.
  // Thread-safe.
  virtual bool IsHole(const Extent& extent) const {
    return NextData(HostOffset{extent.begin_bytes}).begin_bytes >= extent.end_bytes;
  }

  // IsHole for each of `extents`, but a file whose answers take long to come back has all questions
  // under way at once. Thread-safe.
  virtual std::vector<bool> FindHoles(absl::Span<const Extent> extents) const {
    std::vector<bool> holes;
    holes.reserve(extents.size());
    for (const Extent& extent : extents) holes.push_back(IsHole(extent));
    return holes;
  }
};

// An image that can be changed. Only a repair that was asked for, and its undo, hold one
// (repair/apply.h). Not thread-safe.
class WritableImageFile : public ImageFile {
 public:
  // Writes all of `src`, inside the file: [offset, offset + size) does not reach past its end.
  // What is on disk after an error, or before the next Flush, may be any part of it. kDataLoss,
  // or kResourceExhausted if the file system is full.
  virtual absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) = 0;

  // Makes the file longer (the new bytes read as zeros) or shorter. kFailedPrecondition for a
  // block device, whose length is what it is.
  virtual absl::Status Resize(uint64_t size_bytes) = 0;

  // Makes the stretch read as zeros and gives its space back, if the file can do that; its bytes
  // are lost. OK and nothing done if it cannot.
  virtual absl::Status Discard(const Extent& extent) = 0;

  // Returns when all that was written before survives a power cut.
  virtual absl::Status Flush() = 0;

  // Whether Resize cannot work.
  virtual bool has_fixed_size() const { return false; }
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_IMAGE_FILE_H_
