// Image files made by QEMU's own tools, and ways to damage them in place.
#ifndef QCOW2CHECK_TESTS_DISK_IMAGE_H_
#define QCOW2CHECK_TESTS_DISK_IMAGE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "tests/program.h"

namespace qcow2check::testing {

// Runs the tool and fails the test with its words if it does not succeed.
void QemuImg(const std::vector<std::string>& arguments);
// One qemu-io for all commands, without flushes: the result of a crash of the host is not tested.
void QemuIo(const std::string& path, const std::vector<std::string>& commands);
// The same, ended by SIGKILL when the commands are done: the image is not closed.
void QemuIoKilled(const std::string& path, std::vector<std::string> commands);

class DiskImage;

// Makes `image` a LUKS-encrypted image for kLuksSecret. Some versions of qemu-img now and then fail
// to measure how fast the machine derives keys; false if this one always does.
[[nodiscard]] bool CreateLuks(const DiskImage& image, const std::string& options,
                              const std::string& size);
inline constexpr char kLuksSecret[] = "secret,id=key,data=passphrase";
// What to give to qemu-img and qemu-io with --image-opts.
std::string LuksImageOptions(const DiskImage& image);

// An image file in a directory of its own.
class DiskImage {
 public:
  // No file yet: for images that are converted or copied.
  DiskImage() : path_(dir_.Path("t.qcow2")) {}
  // qemu-img create [-o `options`] of `size` ("64M").
  explicit DiskImage(const std::string& size, const std::string& options = "");

  const std::string& path() const { return path_; }
  // Another file beside the image.
  std::string Beside(absl::string_view name) const { return dir_.Path(name); }

  void Io(const std::vector<std::string>& commands) const { QemuIo(path_, commands); }
  void TakeSnapshot(const std::string& name) const;
  // "80 00 00 00 00 03 00 00"
  void Poke(uint64_t offset, absl::string_view hex) const;
  void PokeBytes(uint64_t offset, absl::string_view bytes) const;
  void Poke16(uint64_t offset, uint64_t value) const;
  void Poke32(uint64_t offset, uint64_t value) const;
  void Poke64(uint64_t offset, uint64_t value) const;
  void Zero(uint64_t offset, uint64_t length) const;
  std::string Bytes(uint64_t offset, uint64_t length) const;
  uint64_t Peek64(uint64_t offset) const;
  uint64_t Peek32(uint64_t offset) const;
  // Where the data of the header extension starts; 0, and a test failure, if there is none.
  uint64_t ExtensionData(uint32_t type) const;
  void Truncate(uint64_t size) const;
  uint64_t size_bytes() const;

 private:
  TempDir dir_;
  std::string path_;
};

}  // namespace qcow2check::testing

#endif  // QCOW2CHECK_TESTS_DISK_IMAGE_H_
