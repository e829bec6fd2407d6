#include "common/posix_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace qcow2check {
namespace {

int OpenReadOnly(const char* path) {
  // O_NONBLOCK: opening a pipe that nobody writes must not hang. It changes nothing for files.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  const int fd = open(path, kFlags | O_NOATIME);
  return fd < 0 && errno == EPERM ? open(path, kFlags) : fd;
}

absl::Status OpenError(int error, const std::string& path) {
  const std::string message = absl::StrCat("cannot open '", path, "': ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<PosixFile>> PosixFile::Open(const std::string& path) {
  const int fd = OpenReadOnly(path.c_str());
  if (fd < 0) return OpenError(errno, path);
  std::unique_ptr<PosixFile> file(new PosixFile(fd, 0, 0, 0));
  struct stat info;
  if (fstat(fd, &info) != 0) return OpenError(errno, path);
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is a directory, not an image"));
  }
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, "' is not a regular file or block device"));
  }
  const off_t end = lseek(fd, 0, SEEK_END);
  if (end < 0) return OpenError(errno, path);
  if (end == 0) return absl::InvalidArgumentError(absl::StrCat("'", path, "' is empty"));
  file->size_bytes_ = static_cast<uint64_t>(end);
  file->device_ = info.st_dev;
  file->inode_ = info.st_ino;
  return file;
}

PosixFile::~PosixFile() { close(fd_); }

absl::Status PosixFile::ReadAt(HostOffset offset, absl::Span<uint8_t> dst) const {
  // Offsets come from images; past the end of what off_t can say there is nothing to read.
  const uint64_t begin = std::min(offset.bytes, size_bytes_);
  uint64_t wanted = std::min<uint64_t>(dst.size(), size_bytes_ - begin);
  uint64_t done = 0;
  while (done < wanted) {
    const ssize_t got =
        pread(fd_, dst.data() + done, wanted - done, static_cast<off_t>(begin + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return absl::DataLossError(
          absl::StrCat("cannot read at offset ", begin + done, ": ", std::strerror(errno)));
    }
    if (got == 0) break;  // the file has shrunk since it was opened: reads as zeros
    done += static_cast<uint64_t>(got);
  }
  std::fill(dst.begin() + static_cast<int64_t>(done), dst.end(), uint8_t{0});
  return absl::OkStatus();
}

Extent PosixFile::NextData(HostOffset offset) const {
  if (offset.bytes >= size_bytes_) return {offset.bytes, offset.bytes};
  const off_t begin = lseek(fd_, static_cast<off_t>(offset.bytes), SEEK_DATA);
  if (begin < 0) {
    if (errno == ENXIO) return {size_bytes_, size_bytes_};
    return {offset.bytes, size_bytes_};
  }
  const off_t end = lseek(fd_, begin, SEEK_HOLE);
  if (end < 0) return {static_cast<uint64_t>(begin), size_bytes_};
  return {static_cast<uint64_t>(begin), std::min(static_cast<uint64_t>(end), size_bytes_)};
}

}  // namespace qcow2check
