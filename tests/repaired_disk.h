// Image files that the program repairs, and what must be true of each repair by the program:
// qemu-img check agrees with its exit code, a second repair changes nothing, and undo gives back
// the damaged file.
#ifndef QCOW2CHECK_TESTS_REPAIRED_DISK_H_
#define QCOW2CHECK_TESTS_REPAIRED_DISK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/checked_program.h"
#include "tests/disk_image.h"
#include "tests/guest_view.h"

namespace qcow2check::testing {

struct RepairedDisk {
  CheckedImage report;  // of --repair --json
  int exit_code = -1;
  int qemu_exit_code = -1;  // of qemu-img check afterwards
  // Units of the disk and of the snapshots that read as when the image was sound, and those that
  // do not.
  uint64_t readable = 0;
  uint64_t unreadable = 0;
  uint64_t size_bytes = 0;

  bool IsClean() const { return exit_code == 0 && qemu_exit_code == 0; }
  bool HasAllData() const { return unreadable == 0; }
};

// What is on a disk before it is damaged.
class SoundDisk {
 public:
  // The image as it is now, and closed.
  explicit SoundDisk(const DiskImage& image);

  // Runs qcow2check --repair[=`mode`] with `options` on the image, which was damaged meanwhile.
  RepairedDisk Repair(const std::string& mode = "all",
                      const std::vector<std::string>& options = {}) const;
  // How much of the disk and the snapshots can be read now.
  uint64_t Readable() const;
  uint64_t units() const;

 private:
  const DiskImage& image_;
  uint64_t end_bytes_ = 0;
  GuestView disk_;
  std::vector<GuestView> snapshots_;
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_REPAIRED_DISK_H_
