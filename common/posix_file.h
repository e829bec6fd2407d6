// An image in a regular file or on a host block device, opened read-only and without changing
// its access time where the system lets us (O_NOATIME: the owner or root).
#ifndef QCOW2CHECK_COMMON_POSIX_FILE_H_
#define QCOW2CHECK_COMMON_POSIX_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/image_file.h"

namespace qcow2check {

class PosixFile : public ImageFile {
 public:
  // Opens `path`. Errors are one plain sentence each: kNotFound, kPermissionDenied, or
  // kInvalidArgument for what is no image (a directory, a pipe, a terminal, an empty file).
  static absl::StatusOr<std::unique_ptr<PosixFile>> Open(const std::string& path);

  ~PosixFile() override;
  PosixFile(const PosixFile&) = delete;
  PosixFile& operator=(const PosixFile&) = delete;

  uint64_t size_bytes() const override { return size_bytes_; }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override;
  Extent NextData(HostOffset offset) const override;

  int fd() const { return fd_; }
  // Identity of the file, for cycle checks in a backing chain.
  uint64_t device() const { return device_; }
  uint64_t inode() const { return inode_; }

 private:
  PosixFile(int fd, uint64_t size_bytes, uint64_t device, uint64_t inode)
      : fd_(fd), size_bytes_(size_bytes), device_(device), inode_(inode) {}

  int fd_;
  uint64_t size_bytes_;
  uint64_t device_;
  uint64_t inode_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_POSIX_FILE_H_
