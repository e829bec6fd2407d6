// Images on block devices: the same report as for the file below, and repairs that know that a
// device has one length and no room beside it. Skipped where no loop device can be made.
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/checked_program.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;
using Words = std::vector<std::string>;

CommandResult Program(const Words& arguments) {
  Words argv = {"timeout", "60", QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv);
}

class LoopDevice {
 public:
  explicit LoopDevice(const std::string& file) {
    if (!HaveProgram("losetup")) return;
    const CommandResult result = RunCommand({"losetup", "--find", "--show", file});
    if (result.exit_code != 0) return;
    path_ = std::string(absl::StripTrailingAsciiWhitespace(result.out));
  }
  ~LoopDevice() {
    if (!path_.empty()) RunCommand({"losetup", "--detach", path_});
  }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;

  // Empty: no such devices here.
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Two guest clusters on one host cluster: a copy of it needs a cluster more.
BuiltImage CrossLinked() {
  BuiltImage image = BuildImage(FieldImageOptions());
  SetL2Entry(image, 1 << 16, GetL2Entry(image, 0));
  return image;
}

BuiltImage Leaky() {
  BuiltImage image = BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
  SetL2Entry(image, 0, 0);
  return image;
}

// What was found out about the image, whatever it is called and however it was read.
Json ReportOf(const std::string& path) {
  CheckedImage checked = CheckWithProgram(path);
  checked.json.erase("filename");
  for (const char* key : {"reads", "bytes-read"}) checked.json["coverage"].erase(key);
  checked.json["exit-code"] = checked.exit_code;
  return checked.json;
}

TEST(Device, TheReportIsThatOfTheFile) {
  const TempDir dir;
  for (const BuiltImage& image : {BuildImage(FieldImageOptions()), CrossLinked(), Leaky()}) {
    const std::string file = dir.Write("image.qcow2", image.bytes);
    const LoopDevice device(file);
    if (device.path().empty()) GTEST_SKIP() << "no loop devices here";
    EXPECT_EQ(ReportOf(device.path()), ReportOf(file));
  }
}

TEST(Device, ARepairNeedsAnUndoFileElsewhere) {
  const TempDir dir;
  const std::string file = dir.Write("image.qcow2", Leaky().bytes);
  const LoopDevice device(file);
  if (device.path().empty()) GTEST_SKIP() << "no loop devices here";
  const CommandResult refused = Program({"--repair", device.path()});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("the undo file of a device cannot lie beside it"),
                                 HasSubstr("--undo-file=PATH")));
  EXPECT_EQ(ReadFile(file), Leaky().bytes);
  EXPECT_THAT(Program({"--repair", "-n", device.path()}).out, StartsWith("Note: the undo file of"));
  const std::string undo = dir.Path("undo");
  EXPECT_EQ(Program({"--repair", "--undo-file=" + undo, device.path()}).exit_code, 0);
  EXPECT_EQ(Program({device.path()}).exit_code, 0);
  EXPECT_EQ(Program({"undo", undo, device.path()}).exit_code, 0);
  EXPECT_EQ(Program({device.path()}).exit_code, 3);
}

TEST(Device, StaysAsLongAsItIs) {
  const TempDir dir;
  const LoopDevice device(dir.Write("image.qcow2", CrossLinked().bytes));
  if (device.path().empty()) GTEST_SKIP() << "no loop devices here";
  // The copy needs a cluster, and there is none: it is left, and nothing else is.
  const CheckedImage result = CheckWithProgram(device.path(), {"--repair", "--no-undo"});
  EXPECT_EQ(result.exit_code, 2) << result.json.dump(1);
  EXPECT_EQ(result.json["repair"]["old-size"], result.json["repair"]["new-size"]);
  const Json finding = result.TheOnly("cross-linked-data");
  EXPECT_EQ(finding["repair"]["status"], "declined");
  EXPECT_THAT(finding["repair"]["reason"].dump(), HasSubstr("bytes short"));
}

}  // namespace
}  // namespace qcow2check::testing
