#include "tests/disk_image.h"

#include <filesystem>
#include <fstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/check.h"
#include "gtest/gtest.h"

namespace qcow2check::testing {
namespace {

void RunOrFail(const std::vector<std::string>& argv) {
  const CommandResult result = RunCommand(argv);
  EXPECT_EQ(result.exit_code, 0) << absl::StrJoin(argv, " ") << "\n" << result.out << result.err;
}

std::vector<std::string> IoArguments(const std::string& path,
                                     const std::vector<std::string>& commands) {
  std::vector<std::string> argv = {"qemu-io", "-f", "qcow2", "-t", "unsafe"};
  for (const std::string& command : commands) {
    argv.push_back("-c");
    argv.push_back(command);
  }
  argv.push_back(path);
  return argv;
}

uint64_t PeekNumber(const std::string& bytes) {
  uint64_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

std::string NumberBytes(uint64_t value, int width) {
  std::string bytes;
  for (int shift = (width - 1) * 8; shift >= 0; shift -= 8) {
    bytes.push_back(static_cast<char>(value >> shift));
  }
  return bytes;
}

}  // namespace

void QemuImg(const std::vector<std::string>& arguments) {
  std::vector<std::string> argv = {"qemu-img"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  RunOrFail(argv);
}

void QemuIo(const std::string& path, const std::vector<std::string>& commands) {
  RunOrFail(IoArguments(path, commands));
}

void QemuIoKilled(const std::string& path, std::vector<std::string> commands) {
  // What the writer holds in its caches must be in the file, as if it had run for long.
  commands.push_back("sigraise 9");
  const CommandResult result = RunCommand(IoArguments(path, commands));
  EXPECT_EQ(result.exit_code, 128 + 9) << result.out << result.err;
}

bool CreateLuks(const DiskImage& image, const std::string& options, const std::string& size) {
  constexpr int kTries = 5;
  CommandResult result;
  for (int i = 0; i < kTries; ++i) {
    result =
        RunCommand({"qemu-img", "create", "-q", "-f", "qcow2", "--object", kLuksSecret, "-o",
                    absl::StrCat("encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
                                 options.empty() ? "" : ",", options),
                    image.path(), size});
    if (result.exit_code == 0) return true;
  }
  EXPECT_NE(result.err.find("CPU usage"), std::string::npos) << result.err;
  return false;
}

std::string LuksImageOptions(const DiskImage& image) {
  return absl::StrCat("driver=qcow2,encrypt.key-secret=key,file.filename=", image.path());
}

DiskImage::DiskImage(const std::string& size, const std::string& options) : DiskImage() {
  std::vector<std::string> arguments = {"create", "-q", "-f", "qcow2"};
  if (!options.empty()) arguments.insert(arguments.end(), {"-o", options});
  arguments.insert(arguments.end(), {path_, size});
  QemuImg(arguments);
}

void DiskImage::TakeSnapshot(const std::string& name) const {
  QemuImg({"snapshot", "-c", name, path_});
}

void DiskImage::Poke(uint64_t offset, absl::string_view hex) const {
  PokeBytes(offset, absl::HexStringToBytes(absl::StrReplaceAll(hex, {{" ", ""}})));
}

void DiskImage::PokeBytes(uint64_t offset, absl::string_view bytes) const {
  std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(offset));
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  QCOW2CHECK_CHECK(!file.fail());
}

void DiskImage::Poke16(uint64_t offset, uint64_t value) const {
  PokeBytes(offset, NumberBytes(value, 2));
}
void DiskImage::Poke32(uint64_t offset, uint64_t value) const {
  PokeBytes(offset, NumberBytes(value, 4));
}
void DiskImage::Poke64(uint64_t offset, uint64_t value) const {
  PokeBytes(offset, NumberBytes(value, 8));
}

void DiskImage::Zero(uint64_t offset, uint64_t length) const {
  PokeBytes(offset, std::string(length, '\0'));
}

std::string DiskImage::Bytes(uint64_t offset, uint64_t length) const {
  std::ifstream file(path_, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  std::string bytes(length, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(length));
  QCOW2CHECK_CHECK(!file.fail());
  return bytes;
}

uint64_t DiskImage::Peek64(uint64_t offset) const { return PeekNumber(Bytes(offset, 8)); }
uint64_t DiskImage::Peek32(uint64_t offset) const { return PeekNumber(Bytes(offset, 4)); }

uint64_t DiskImage::ExtensionData(uint32_t type) const {
  for (uint64_t at = Peek32(4) < 3 ? 72 : Peek32(100); Peek32(at) != 0;) {
    if (Peek32(at) == type) return at + 8;
    at += 8 + (Peek32(at + 4) + 7) / 8 * 8;
  }
  ADD_FAILURE() << "no header extension of type " << type;
  return 0;
}

void DiskImage::Truncate(uint64_t size) const { std::filesystem::resize_file(path_, size); }
uint64_t DiskImage::size_bytes() const { return std::filesystem::file_size(path_); }

}  // namespace qcow2check::testing
