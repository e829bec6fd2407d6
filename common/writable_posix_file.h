// An image in a regular file or on a host block device, opened for writing: for a repair that was
// asked for, its undo file, and the undo.
#ifndef QCOW2CHECK_COMMON_WRITABLE_POSIX_FILE_H_
#define QCOW2CHECK_COMMON_WRITABLE_POSIX_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/image_file.h"
#include "common/posix_io.h"

namespace qcow2check {

class WritablePosixFile : public WritableImageFile {
 public:
  // Opens `path`, which must exist. Errors are one plain sentence each, as PosixFile::Open's;
  // kPermissionDenied for a file or file system that is read-only.
  static absl::StatusOr<std::unique_ptr<WritablePosixFile>> Open(const std::string& path);

  // Makes a new, empty file that only its owner can read; kAlreadyExists if there is something at
  // `path`, even a dangling link. The owner is that of the open file `like_fd`, if we are allowed
  // to say so: who owns the image must be able to use its undo file. The file's name survives a
  // power cut when this returns.
  static absl::StatusOr<std::unique_ptr<WritablePosixFile>> Create(const std::string& path,
                                                                   int like_fd);

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

  absl::Status WriteAt(HostOffset offset, absl::Span<const uint8_t> src) override;
  absl::Status Resize(uint64_t size_bytes) override;
  absl::Status Discard(const Extent& extent) override;
  absl::Status Flush() override;
  bool has_fixed_size() const override { return info_.is_block_device; }

  int fd() const { return file_.get(); }
  // As PosixFile's.
  uint64_t device() const { return info_.device; }
  uint64_t inode() const { return info_.inode; }

 private:
  WritablePosixFile(FileDescriptor file, const PosixFileInfo& info, std::string path)
      : file_(std::move(file)), info_(info), path_(std::move(path)) {}

  absl::Status Error(int error, absl::string_view what) const;

  FileDescriptor file_;
  PosixFileInfo info_;
  std::string path_;
  bool size_changed_ = false;  // since the last Flush
};

// Makes the names in the folder of `path` survive a power cut, as far as the file system can.
absl::Status FlushFolderOf(const std::string& path);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_WRITABLE_POSIX_FILE_H_
