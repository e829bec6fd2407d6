// `qcow2check undo` at a shell: what it gives back, what it refuses, and in which words. What it
// does to an image is tested in undo_test.cc.
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using Json = nlohmann::json;
using Bytes = std::vector<uint8_t>;

CommandResult Program(const std::vector<std::string>& arguments) {
  std::vector<std::string> argv = {"timeout", "60", QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv);
}

class UndoCommandTest : public ::testing::Test {
 protected:
  UndoCommandTest() {
    BuiltImage image = BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
    good_ = dir_.Write("good.qcow2", image.bytes);
    SetL2Entry(image, 0, 0);
    leaky_bytes_ = image.bytes;
    leaky_ = dir_.Write("leaky.qcow2", leaky_bytes_);
  }

  // Exit code 1, one sentence with `words`, nothing on stdout, nothing changed.
  void ExpectRefused(const CommandResult& result, const std::string& words) {
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, AllOf(StartsWith("qcow2check: "), HasSubstr(words)));
    EXPECT_EQ(absl::c_count(result.err, '\n'), 1) << result.err;
    EXPECT_EQ(ReadFile(leaky_), leaky_bytes_);
  }

  TempDir dir_;
  std::string good_, leaky_;
  Bytes leaky_bytes_;
};

TEST_F(UndoCommandTest, UndoRefusesAnImageThatWasChangedSince) {
  Program({"--repair", leaky_});
  Bytes changed = ReadFile(leaky_);
  changed[2 * 65536 + 11] ^= 0x40;  // a refcount that the repair wrote
  WriteFile(leaky_, changed);
  const CommandResult refused = Program({"undo", leaky_ + ".undo", leaky_});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.out, IsEmpty());
  EXPECT_THAT(refused.err, AllOf(HasSubstr("nothing was undone"), HasSubstr("0x20000-0x201ff"),
                                 HasSubstr("--force")));
  EXPECT_EQ(ReadFile(leaky_), changed);
  EXPECT_EQ(Program({"undo", "--force", leaky_ + ".undo", leaky_}).exit_code, 0);
  EXPECT_EQ(ReadFile(leaky_), leaky_bytes_);
}

TEST_F(UndoCommandTest, UndoRefusesWhatIsNoUndoFile) {
  for (const std::string& file : {good_, dir_.Write("text", Bytes(100, 'x'))}) {
    const CommandResult result = Program({"undo", file, leaky_});
    ExpectRefused(result, "no undo file");
  }
  ExpectRefused(Program({"undo", dir_.Path("none"), leaky_}), "No such file or directory");
  // The arguments the wrong way round.
  Program({"--repair", leaky_});
  const Bytes undo_file = ReadFile(leaky_ + ".undo");
  EXPECT_EQ(Program({"undo", leaky_, leaky_ + ".undo"}).exit_code, 1);
  EXPECT_EQ(ReadFile(leaky_ + ".undo"), undo_file);
}

TEST_F(UndoCommandTest, WrongUseOfUndo) {
  ExpectRefused(Program({"undo"}), "is required");
  ExpectRefused(Program({"undo", leaky_}), "is required");
  ExpectRefused(Program({"undo", "--bogus", leaky_, leaky_}), "--bogus");
  EXPECT_THAT(Program({"undo", "--help"}).out, HasSubstr("qcow2check undo"));
}

TEST_F(UndoCommandTest, JsonOfUndo) {
  Program({"--repair", leaky_});
  const CommandResult done = Program({"undo", "--json", leaky_ + ".undo", leaky_});
  const Json json = Json::parse(done.out, nullptr, false);
  EXPECT_EQ(json.value("outcome", ""), "restored");
  EXPECT_EQ(json.value("undo-file", ""), leaky_ + ".undo");
  EXPECT_FALSE(json.value("repair-was-interrupted", true));
  const CommandResult failed = Program({"undo", "--json", good_, leaky_});
  const Json error = Json::parse(failed.out, nullptr, false);
  EXPECT_EQ(error.value("outcome", ""), "failed");
  EXPECT_EQ(absl::StrCat("qcow2check: ", error.value("error", ""), "\n"), failed.err);
}

}  // namespace
}  // namespace qcow2check::testing
