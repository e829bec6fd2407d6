#include "tests/repaired_disk.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/header.h"
#include "gtest/gtest.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

void ExpectUndoRestores(const std::string& repaired, const std::string& undo_file,
                        const std::string& copy, const std::vector<uint8_t>& damaged) {
  std::filesystem::copy_file(repaired, copy, std::filesystem::copy_options::overwrite_existing);
  const CommandResult undo = RunCommand({QCOW2CHECK_PROGRAM, "undo", undo_file, copy});
  EXPECT_EQ(undo.exit_code, 0) << undo.err;
  EXPECT_TRUE(ReadFile(copy) == damaged) << "undo did not restore the image";
}

}  // namespace

SoundDisk::SoundDisk(const DiskImage& image) : image_(image) {
  const std::vector<uint8_t> bytes = ReadFile(image.path());
  end_bytes_ = DecodeHeader(absl::MakeSpan(bytes).first(kHeaderBytesKnown)).size;
  disk_ = ReadDisk({bytes, {}}, end_bytes_);
  snapshots_ = ReadSnapshots({bytes, {}});
}

uint64_t SoundDisk::units() const {
  uint64_t units = disk_.units.size();
  for (const GuestView& snapshot : snapshots_) units += snapshot.units.size();
  return units;
}

uint64_t SoundDisk::Readable() const {
  const std::vector<uint8_t> bytes = ReadFile(image_.path());
  uint64_t readable = CountEqual(disk_, ReadDisk({bytes, {}}, end_bytes_));
  std::vector<GuestView> snapshots = ReadSnapshots({bytes, {}}, MappedBytes(snapshots_));
  snapshots.resize(std::max(snapshots.size(), snapshots_.size()));
  for (size_t i = 0; i < snapshots_.size(); ++i) {
    readable += CountEqual(snapshots_[i], snapshots[i]);
  }
  return readable;
}

RepairedDisk SoundDisk::Repair(const std::string& mode,
                               const std::vector<std::string>& options) const {
  const std::vector<uint8_t> damaged = ReadFile(image_.path());
  const std::string undo_file = image_.Beside("undo");
  std::filesystem::remove(undo_file);
  std::vector<std::string> arguments = {absl::StrCat("--repair=", mode),
                                        "--undo-file=" + undo_file};
  arguments.insert(arguments.end(), options.begin(), options.end());
  RepairedDisk repaired;
  repaired.report = CheckWithProgram(image_.path(), arguments);
  repaired.exit_code = repaired.report.exit_code;
  const std::vector<uint8_t> bytes = ReadFile(image_.path());
  repaired.size_bytes = bytes.size();
  const bool changed = bytes != damaged;
  EXPECT_EQ(std::filesystem::exists(undo_file), changed);
  if (changed) ExpectUndoRestores(image_.path(), undo_file, image_.Beside("undone"), damaged);

  const CheckedImage again = CheckWithProgram(
      image_.path(), {absl::StrCat("--repair=", mode), "--undo-file=" + image_.Beside("undo2")});
  EXPECT_TRUE(ReadFile(image_.path()) == bytes) << "a second repair writes";
  EXPECT_EQ(again.exit_code, repaired.exit_code);

  repaired.readable = Readable();
  repaired.unreadable = units() - repaired.readable;
  repaired.qemu_exit_code =
      RunCommand({"qemu-img", "check", "-q", "-f", "qcow2", image_.path()}).exit_code;
  return repaired;
}

}  // namespace qcow2check::testing
