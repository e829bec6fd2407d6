// Images that other programs made, where they are there to be read: the numbers are qemu-img's.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/checked_program.h"
#include "tests/program.h"
#include "tests/qemu.h"

namespace qcow2check::testing {
namespace {

std::vector<std::string> RealImages() {
  const std::filesystem::path folder =
      std::filesystem::path(QCOW2CHECK_SOURCE_DIR) / ".." / "shared" / "images";
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::filesystem::path extension = entry.path().extension();
    if (extension == ".qcow2" || extension == ".img") paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

TEST(RealImages, NumbersAreQemus) {
  QCOW2CHECK_SKIP_WITHOUT_QEMU();
  const std::vector<std::string> paths = RealImages();
  if (paths.empty()) GTEST_SKIP() << "no collection of real images here";
  for (const std::string& path : paths) {
    SCOPED_TRACE(path);
    const CheckedTwice both = CheckWithBoth(path);
    if (both.qemu.has_json) {
      EXPECT_TRUE(AllNumbersAgree(both));
      continue;
    }
    // qemu-img cannot open the backing file. Ours does not need it.
    EXPECT_NE(both.qemu.err.find("backing"), std::string::npos) << both.qemu.err;
    EXPECT_EQ(both.ours.exit_code, 0);
    EXPECT_EQ(both.ours.verdict(), "clean");
  }
}

TEST(RealImages, CompressedDataIsSound) {
  const std::vector<std::string> paths = RealImages();
  if (paths.empty()) GTEST_SKIP() << "no collection of real images here";
  for (const std::string& path : paths) {
    const CheckedImage ours = CheckWithProgram(path, {"--verify-data"});
    EXPECT_FALSE(ours.Has("compressed-broken")) << path;
    EXPECT_FALSE(ours.Has("compressed-overlap")) << path;
  }
}

TEST(RealImages, CanBeInspected) {
  const std::vector<std::string> paths = RealImages();
  if (paths.empty()) GTEST_SKIP() << "no collection of real images here";
  for (const std::string& path : paths) {
    const CommandResult text = RunCommand({QCOW2CHECK_PROGRAM, "inspect", path});
    EXPECT_EQ(text.exit_code, 0) << path << "\n" << text.err;
    const CommandResult json = RunCommand({QCOW2CHECK_PROGRAM, "inspect", path, "--json"});
    EXPECT_EQ(json.exit_code, 0) << path << "\n" << json.err;
    EXPECT_TRUE(nlohmann::json::parse(json.out, nullptr, false).is_object()) << path;
  }
}

}  // namespace
}  // namespace qcow2check::testing
