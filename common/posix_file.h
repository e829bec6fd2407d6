// An image in a regular file or on a host block device, opened read-only and without changing
// its access time where the system lets us (O_NOATIME: the owner or root).
#ifndef QCOW2CHECK_COMMON_POSIX_FILE_H_
#define QCOW2CHECK_COMMON_POSIX_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/image_file.h"
#include "common/posix_io.h"

namespace qcow2check {

class PosixFile : public ImageFile {
 public:
  // Opens `path`. Errors are one plain sentence each: kNotFound, kPermissionDenied, or
  // kInvalidArgument for what is no image (a directory, a pipe, a terminal, an empty file).
  static absl::StatusOr<std::unique_ptr<PosixFile>> Open(const std::string& path);

  uint64_t size_bytes() const override { return info_.size_bytes; }
  absl::Status ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const override {
    return ReadBytesOf(file_, info_.size_bytes, offset, dst);
  }
  absl::Status availability() const override { return AvailabilityOf(file_, info_.size_bytes); }
  Extent NextData(HostOffset offset) const override {
    return NextDataOf(file_, info_.size_bytes, offset);
  }

  uint64_t allocated_bytes() const override { return info_.allocated_bytes; }
  bool IsHole(const Extent& extent) const override {
    return info_.allocated_bytes < info_.size_bytes && IsHoleOf(file_, extent);
  }
  void ReadMany(absl::Span<ReadRequest> requests) const override {
    ReadManyOf(file_, info_.size_bytes, requests);
  }

  int fd() const { return file_.get(); }
  // Identity of the file, for cycle checks in a backing chain.
  uint64_t device() const { return info_.device; }
  uint64_t inode() const { return info_.inode; }

 private:
  PosixFile(FileDescriptor file, const PosixFileInfo& info) : file_(std::move(file)), info_(info) {}

  FileDescriptor file_;
  PosixFileInfo info_;
};

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_POSIX_FILE_H_
