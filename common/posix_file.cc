#include "common/posix_file.h"

#include <errno.h>
#include <fcntl.h>

#include <utility>

namespace qcow2check {
namespace {

int OpenReadOnly(const char* path) {
  // O_NONBLOCK: opening a pipe that nobody writes must not hang. It changes nothing for files.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  const int fd = open(path, kFlags | O_NOATIME);
  return fd < 0 && errno == EPERM ? open(path, kFlags) : fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PosixFile>> PosixFile::Open(const std::string& path) {
  FileDescriptor file(OpenReadOnly(path.c_str()));
  if (!file.valid()) return OpenError(errno, path);
  const absl::StatusOr<PosixFileInfo> info = InfoOfImage(file, path);
  if (!info.ok()) return info.status();
  return std::unique_ptr<PosixFile>(new PosixFile(std::move(file), *info));
}

}  // namespace qcow2check
