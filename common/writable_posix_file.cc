#include "common/writable_posix_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace qcow2check {
namespace {

absl::Status OpenForWritingError(int error, const std::string& path) {
  switch (error) {
    case EROFS:
      return absl::PermissionDeniedError(
          absl::StrCat("cannot write '", path, "': it is on a read-only file system or device"));
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(
          absl::StrCat("cannot write '", path, "': no permission to write it"));
    case EISDIR:
      return absl::InvalidArgumentError(absl::StrCat("'", path, "' is a directory, not an image"));
    case EEXIST:
      return absl::AlreadyExistsError(absl::StrCat("'", path, "' exists already"));
    default:
      return OpenError(error, path);
  }
}

absl::string_view WordsOf(int error) { return std::strerror(error); }

bool IsUnsupported(int error) {
  return error == EOPNOTSUPP || error == ENOTSUP || error == ENOSYS || error == EINVAL ||
         error == ENODEV || error == ENOTTY;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WritablePosixFile>> WritablePosixFile::Open(
    const std::string& path) {
  FileDescriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return OpenForWritingError(errno, path);
  const absl::StatusOr<PosixFileInfo> info = InfoOfImage(file, path);
  if (!info.ok()) return info.status();
  return std::unique_ptr<WritablePosixFile>(new WritablePosixFile(std::move(file), *info, path));
}

absl::StatusOr<std::unique_ptr<WritablePosixFile>> WritablePosixFile::Create(
    const std::string& path, int like_fd) {
  FileDescriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.valid()) return OpenForWritingError(errno, path);
  struct stat like;
  // Only root may; for all others the file is theirs, as it should be.
  if (fstat(like_fd, &like) == 0 && fchown(file.get(), like.st_uid, like.st_gid) != 0) errno = 0;
  if (absl::Status status = FlushFolderOf(path); !status.ok()) return status;
  return std::unique_ptr<WritablePosixFile>(new WritablePosixFile(std::move(file), {}, path));
}

absl::Status WritablePosixFile::Error(int error, absl::string_view what) const {
  const std::string message = absl::StrCat("cannot ", what, " '", path_, "': ", WordsOf(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::DataLossError(message);
  }
}

absl::Status WritablePosixFile::WriteAt(HostOffset offset, absl::Span<const uint8_t> src) {
  QCOW2CHECK_CHECK(offset.bytes <= info_.size_bytes &&
                   src.size() <= info_.size_bytes - offset.bytes);
  uint64_t done = 0;
  while (done < src.size()) {
    const ssize_t put = pwrite(file_.get(), src.data() + done, src.size() - done,
                               static_cast<off_t>(offset.bytes + done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Error(errno, "write");
    if (put == 0) return Error(EIO, "write");
    done += static_cast<uint64_t>(put);
  }
  return absl::OkStatus();
}

absl::Status WritablePosixFile::Resize(uint64_t size_bytes) {
  if (info_.is_block_device) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", path_, "' is a device, its size cannot be changed"));
  }
  int result = 0;
  do {
    result = ftruncate(file_.get(), static_cast<off_t>(size_bytes));
  } while (result != 0 && errno == EINTR);
  if (result != 0) return Error(errno, "change the size of");
  info_.size_bytes = size_bytes;
  size_changed_ = true;
  return absl::OkStatus();
}

absl::Status WritablePosixFile::Discard(const Extent& extent) {
  if (extent.empty()) return absl::OkStatus();
  int result = 0;
  do {
    result = fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(extent.begin_bytes),
                       static_cast<off_t>(extent.end_bytes - extent.begin_bytes));
  } while (result != 0 && errno == EINTR);
  if (result == 0 || IsUnsupported(errno)) return absl::OkStatus();
  return Error(errno, "punch a hole into");
}

absl::Status WritablePosixFile::Flush() {
  int result = 0;
  do {
    result = size_changed_ ? fsync(file_.get()) : fdatasync(file_.get());
  } while (result != 0 && errno == EINTR);
  if (result != 0) return Error(errno, "flush");
  size_changed_ = false;
  return absl::OkStatus();
}

absl::Status FlushFolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const FileDescriptor dir(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir.valid()) return OpenError(errno, folder);
  int result = 0;
  do {
    result = fsync(dir.get());
  } while (result != 0 && errno == EINTR);
  // Some file systems cannot flush a folder; there is nothing more to be done on them.
  if (result == 0 || IsUnsupported(errno)) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("cannot flush '", folder, "': ", WordsOf(errno)));
}

}  // namespace qcow2check
