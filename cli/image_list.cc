#include "cli/image_list.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/posix_io.h"

namespace qcow2check {

absl::StatusOr<std::vector<std::string>> ReadImageList(const std::string& path, char end) {
  const FileDescriptor file(path == "-" ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0)
                                        : open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return OpenError(errno, path);
  std::string text;
  std::array<char, 65536> buffer;
  while (true) {
    const ssize_t count = read(file.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot read '", path, "': ", std::strerror(errno)));
    }
    if (count == 0) break;
    const absl::string_view piece(buffer.data(), static_cast<size_t>(count));
    // Told at once: it may be a disk image of any size.
    if (end == '\n' && absl::StrContains(piece, '\0')) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", path, "' is not a list of names: it holds a NUL (-0: they end in one)"));
    }
    absl::StrAppend(&text, piece);
  }
  return std::vector<std::string>(absl::StrSplit(text, end, absl::SkipEmpty()));
}

}  // namespace qcow2check
