// RunCommand and TempDir: what the other tests rely on.
#include "tests/program.h"

#include <filesystem>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace qcow2check::testing {
namespace {

TEST(RunCommandTest, BothStreamsAndTheExitCode) {
  const CommandResult result = RunCommand({"sh", "-c", "echo out; echo err >&2; exit 7"});
  EXPECT_EQ(result.exit_code, 7);
  EXPECT_EQ(result.out, "out\n");
  EXPECT_EQ(result.err, "err\n");
}

TEST(RunCommandTest, WordsAreNotInterpreted) {
  EXPECT_EQ(RunCommand({"echo", "$HOME *", "; exit 1"}).out, "$HOME * ; exit 1\n");
}

TEST(RunCommandTest, MoreOutputThanAPipeHolds) {
  const CommandResult result =
      RunCommand({"sh", "-c", "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out.size(), 300000u);
  EXPECT_EQ(result.err.size(), 300000u);
}

TEST(RunCommandTest, StandardInputIsEmpty) { EXPECT_EQ(RunCommand({"cat"}).exit_code, 0); }

TEST(RunCommandTest, ASignalAndAProgramThatIsNotThere) {
  EXPECT_EQ(RunCommand({"sh", "-c", "kill -TERM $$"}).exit_code, 128 + 15);
  EXPECT_EQ(RunCommand({"./no-such-program"}).exit_code, 127);
  EXPECT_FALSE(HaveProgram("no-such-program"));
  EXPECT_TRUE(HaveProgram("sh"));
}

TEST(TempDirTest, GoesAwayWithAllInIt) {
  std::string path;
  {
    const TempDir dir;
    path = dir.Write("file", std::vector<uint8_t>{1, 2, 3});
    EXPECT_EQ(ReadFile(path), (std::vector<uint8_t>{1, 2, 3}));
    EXPECT_EQ(path, dir.Path("file"));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace qcow2check::testing
