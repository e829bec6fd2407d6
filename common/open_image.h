// Opens an IMAGE by the name that the command line has, or another image, for it: a path or an NBD
// URI.
#ifndef QCOW2CHECK_COMMON_OPEN_IMAGE_H_
#define QCOW2CHECK_COMMON_OPEN_IMAGE_H_

#include <compare>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/image_file.h"
#include "common/nbd_reader.h"

namespace qcow2check {

// Which image it is, by whatever name: a file's device and inode; the URI of an export.
struct ImageId {
  uint64_t device = 0;
  uint64_t inode = 0;
  std::string uri;

  auto operator<=>(const ImageId&) const = default;
};

struct OpenedImage {
  std::unique_ptr<ImageFile> file;
  ImageId id;
  int lock_fd = -1;  // for LockForCheck; -1: there is nothing to lock
};

// Errors as PosixFile::Open's and NbdFile::Open's. Paths do not need `options`.
absl::StatusOr<OpenedImage> OpenToRead(const std::string& name, const NbdOpenOptions& options = {});

struct OpenedWritableImage {
  std::unique_ptr<WritableImageFile> file;
  ImageId id;
  int lock_fd = -1;  // for LockForRepair
};

// Errors as WritablePosixFile::Open's and WritableNbdFile::Open's.
absl::StatusOr<OpenedWritableImage> OpenToWrite(const std::string& name);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_OPEN_IMAGE_H_
