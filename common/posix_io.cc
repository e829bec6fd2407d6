#include "common/posix_io.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace qcow2check {

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) close(fd_);
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

absl::StatusOr<PosixFileInfo> InfoOfImage(const FileDescriptor& file, const std::string& path) {
  struct stat info;
  if (fstat(file.get(), &info) != 0) return OpenError(errno, path);
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is a directory, not an image"));
  }
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, "' is not a regular file or block device"));
  }
  const off_t end = lseek(file.get(), 0, SEEK_END);
  if (end < 0) return OpenError(errno, path);
  if (end == 0) return absl::InvalidArgumentError(absl::StrCat("'", path, "' is empty"));
  return PosixFileInfo{
      .size_bytes = static_cast<uint64_t>(end),
      .device = info.st_dev,
      .inode = info.st_ino,
      .is_block_device = S_ISBLK(info.st_mode),
      .allocated_bytes = static_cast<uint64_t>(
          S_ISREG(info.st_mode) ? std::min<off_t>(info.st_blocks * 512, end) : end)};
}

absl::Status ReadBytesOf(const FileDescriptor& file, uint64_t size_bytes, HostOffset offset,
                         absl::Span<uint8_t> dst) {
  // Offsets come from images; past the end of what off_t can say there is nothing to read.
  const uint64_t begin = std::min(offset.bytes, size_bytes);
  const uint64_t wanted = std::min<uint64_t>(dst.size(), size_bytes - begin);
  uint64_t done = 0;
  while (done < wanted) {
    const ssize_t got =
        pread(file.get(), dst.data() + done, wanted - done, static_cast<off_t>(begin + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return absl::DataLossError(
          absl::StrCat("cannot read at offset ", begin + done, ": ", std::strerror(errno)));
    }
    if (got == 0) break;  // the file has shrunk since it was opened, as AvailabilityOf says
    done += static_cast<uint64_t>(got);
  }
  std::fill(dst.begin() + static_cast<int64_t>(done), dst.end(), uint8_t{0});
  return absl::OkStatus();
}

void ReadManyOf(const FileDescriptor& file, uint64_t size_bytes, absl::Span<ReadRequest> requests) {
  // Of a file that is not in the page cache, all stretches are asked for before the first is waited
  // for, so that the disk has them under way at once. To ask costs a little, so it is not done for
  // a file that is.
  const auto ask = [&](const ReadRequest& request) {
    const uint64_t begin = std::min(request.offset.bytes, size_bytes);
    const uint64_t length = std::min<uint64_t>(request.dst.size(), size_bytes - begin);
    posix_fadvise(file.get(), static_cast<off_t>(begin), static_cast<off_t>(length),
                  POSIX_FADV_WILLNEED);
  };
  const auto is_cached = [&](const ReadRequest& request) {
    const iovec whole = {.iov_base = request.dst.data(), .iov_len = request.dst.size()};
    const ssize_t got =
        preadv2(file.get(), &whole, 1, static_cast<off_t>(request.offset.bytes), RWF_NOWAIT);
    return got >= 0 && static_cast<size_t>(got) == request.dst.size();
  };
  size_t done = 0;
  while (done < requests.size() && requests[done].offset.bytes < size_bytes &&
         is_cached(requests[done])) {
    requests[done++].status = absl::OkStatus();
  }
  const absl::Span<ReadRequest> rest = requests.subspan(done);
  for (size_t i = 1; i < rest.size(); ++i) ask(rest[i]);
  for (ReadRequest& request : rest) {
    request.status = ReadBytesOf(file, size_bytes, request.offset, request.dst);
  }
}

absl::Status AvailabilityOf(const FileDescriptor& file, uint64_t size_bytes) {
  struct stat info;
  if (fstat(file.get(), &info) != 0) return absl::UnavailableError(std::strerror(errno));
  const auto size_now_bytes = static_cast<uint64_t>(info.st_size);
  if (!S_ISREG(info.st_mode) || size_now_bytes == size_bytes) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the file was ", size_bytes, " bytes long when it was opened and has ",
                   size_now_bytes, " bytes now: another program is writing it"));
}

bool IsHoleOf(const FileDescriptor& file, const Extent& extent) {
  const off_t data = lseek(file.get(), static_cast<off_t>(extent.begin_bytes), SEEK_DATA);
  return data < 0 ? errno == ENXIO : static_cast<uint64_t>(data) >= extent.end_bytes;
}

Extent NextDataOf(const FileDescriptor& file, uint64_t size_bytes, HostOffset offset) {
  if (offset.bytes >= size_bytes) return {offset.bytes, offset.bytes};
  const off_t begin = lseek(file.get(), static_cast<off_t>(offset.bytes), SEEK_DATA);
  if (begin < 0) {
    if (errno == ENXIO) return {size_bytes, size_bytes};
    return {offset.bytes, size_bytes};
  }
  const off_t end = lseek(file.get(), begin, SEEK_HOLE);
  if (end < 0) return {static_cast<uint64_t>(begin), size_bytes};
  return {static_cast<uint64_t>(begin), std::min(static_cast<uint64_t>(end), size_bytes)};
}

}  // namespace qcow2check
