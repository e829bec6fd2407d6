#include "common/open_image.h"

#include <utility>

#include "common/nbd_file.h"
#include "common/posix_file.h"
#include "common/writable_posix_file.h"

namespace qcow2check {

absl::StatusOr<OpenedImage> OpenToRead(const std::string& name, const NbdOpenOptions& options) {
  if (IsNbdUri(name)) {
    absl::StatusOr<std::unique_ptr<NbdFile>> file = NbdFile::Open(name, options);
    if (!file.ok()) return file.status();
    return OpenedImage{.file = *std::move(file), .id = {.uri = name}};
  }
  absl::StatusOr<std::unique_ptr<PosixFile>> file = PosixFile::Open(name);
  if (!file.ok()) return file.status();
  OpenedImage opened = {.id = {.device = (*file)->device(), .inode = (*file)->inode()},
                        .lock_fd = (*file)->fd()};
  opened.file = *std::move(file);
  return opened;
}

absl::StatusOr<OpenedWritableImage> OpenToWrite(const std::string& name) {
  if (IsNbdUri(name)) {
    absl::StatusOr<std::unique_ptr<WritableNbdFile>> file = WritableNbdFile::Open(name);
    if (!file.ok()) return file.status();
    return OpenedWritableImage{.file = *std::move(file), .id = {.uri = name}};
  }
  absl::StatusOr<std::unique_ptr<WritablePosixFile>> file = WritablePosixFile::Open(name);
  if (!file.ok()) return file.status();
  OpenedWritableImage opened = {.id = {.device = (*file)->device(), .inode = (*file)->inode()},
                                .lock_fd = (*file)->fd()};
  opened.file = *std::move(file);
  return opened;
}

}  // namespace qcow2check
