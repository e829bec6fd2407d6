// QEMU's locks on an image file, so that an image in use is noticed (and our use is, too).
//
// QEMU's protocol: shared locks on single bytes. Byte 100+i: "I use permission i"; byte 200+i: "I
// do not share permission i"; 0 consistent read, 1 write, 3 resize. A lock is taken first and
// conflicts are looked for afterwards, so of two programs that start at once at least one notices.
#ifndef QCOW2CHECK_COMMON_IMAGE_LOCK_H_
#define QCOW2CHECK_COMMON_IMAGE_LOCK_H_

#include <string>

#include "absl/status/status.h"

namespace qcow2check {

// Takes the locks that `qemu-img check` takes on the open file `fd`: consistent read, shared with
// readers but not with programs that write or resize the image. With `force_share` (-U) writers
// are tolerated. kFailedPrecondition if the image is in use, in one sentence that names the
// holder where the kernel tells; OK where the file system has no locks, and for an `fd` of -1, an
// image without any (on an NBD server). Held until fd is closed.
absl::Status LockForCheck(int fd, const std::string& path, bool force_share);

// Takes the locks that `qemu-img check -r` takes on the file `fd`, open for writing: nobody else
// may check, write or resize the image meanwhile. Otherwise as LockForCheck. Of two repairs that
// start at once at most one gets the locks.
absl::Status LockForRepair(int fd, const std::string& path);

}  // namespace qcow2check

#endif  // QCOW2CHECK_COMMON_IMAGE_LOCK_H_
