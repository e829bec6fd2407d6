// What the read-only and the writable kind of file (posix_file.h, writable_posix_file.h) share:
// opening, reading, the words of their errors.
#ifndef QCOW2CHECK_COMMON_POSIX_IO_H_
#define QCOW2CHECK_COMMON_POSIX_IO_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/image_file.h"

namespace qcow2check {

// Closes what it holds.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor();
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_;
};

struct PosixFileInfo {
  uint64_t size_bytes = 0;
  uint64_t device = 0;
  uint64_t inode = 0;
  bool is_block_device = false;
  uint64_t allocated_bytes = 0;  // when it was opened; the size if there are no holes
};

// "cannot open 'path': ..."; kNotFound, kPermissionDenied or kUnavailable.
absl::Status OpenError(int error, const std::string& path);

// Of an open file. kInvalidArgument, in one plain sentence, for what can be no image: a directory,
// a pipe, a terminal, an empty file.
absl::StatusOr<PosixFileInfo> InfoOfImage(const FileDescriptor& file, const std::string& path);

// ImageFile's functions for reading, of a file that is `size_bytes` long.
absl::Status ReadBytesOf(const FileDescriptor& file, uint64_t size_bytes, HostOffset offset,
                         absl::Span<uint8_t> dst);
void ReadManyOf(const FileDescriptor& file, uint64_t size_bytes, absl::Span<ReadRequest> requests);
absl::Status AvailabilityOf(const FileDescriptor& file, uint64_t size_bytes);
bool IsHoleOf(const FileDescriptor& file, const Extent& extent);
Extent NextDataOf(const FileDescriptor& file, uint64_t size_bytes, HostOffset offset);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_POSIX_IO_H_
