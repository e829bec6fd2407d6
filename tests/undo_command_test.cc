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
using ::testing::Not;
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
    image_ = BuildImage({.virtual_size = 4 << 20, .steps = {WriteClusters{.count = 8}}});
    good_ = dir_.Write("good.qcow2", image_.bytes);
    SetL2Entry(image_, 0, 0);
    leaky_bytes_ = image_.bytes;
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
  BuiltImage image_;
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

// Another image's tables would be written over, and its end cut off.
TEST_F(UndoCommandTest, ForceIsNotForAnotherImage) {
  Program({"--repair", leaky_});
  const std::string log = leaky_ + ".undo";
  const std::string other =
      dir_.Write("other.qcow2",
                 BuildImage({.virtual_size = 8 << 20, .steps = {WriteClusters{.count = 9}}}).bytes);
  const std::string raw = dir_.Write("raw.img", Bytes(1 << 20, 'x'));
  for (const std::string& file : {other, raw}) {
    const Bytes bytes = ReadFile(file);
    for (const auto& arguments : {std::vector<std::string>{"undo", log, file},
                                  std::vector<std::string>{"undo", "--force", log, file}}) {
      const CommandResult refused = Program(arguments);
      EXPECT_EQ(refused.exit_code, 1);
      EXPECT_THAT(refused.err, AllOf(HasSubstr("another image"), Not(HasSubstr("--force"))));
      EXPECT_EQ(ReadFile(file), bytes);
    }
  }
}

TEST_F(UndoCommandTest, WhatWasWrittenBehindTheEndSinceStays) {
  Program({"--repair", leaky_});
  Bytes grown = ReadFile(leaky_);
  grown.resize(grown.size() + 65536, 'g');
  WriteFile(leaky_, grown);
  const CommandResult forced = Program({"undo", "--force", leaky_ + ".undo", leaky_});
  EXPECT_EQ(forced.exit_code, 0) << forced.err;
  EXPECT_THAT(forced.out, AllOf(HasSubstr("what the repair overwrote is back"),
                                HasSubstr("is still there"), Not(HasSubstr("as it was before"))));
  Bytes expected = leaky_bytes_;
  expected.resize(expected.size() + 65536, 'g');
  EXPECT_EQ(ReadFile(leaky_), expected);
}

TEST_F(UndoCommandTest, NamesTheLaterRepairThatIsToBeTakenBackFirst) {
  Program({"--repair", leaky_});
  image_.bytes = ReadFile(leaky_);
  SetL2Entry(image_, 65536, 0);
  WriteFile(leaky_, image_.bytes);
  Program({"--repair", leaky_});
  const std::string first = leaky_ + ".undo", second = leaky_ + ".undo.1";
  const CommandResult refused = Program({"undo", first, leaky_});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr(absl::StrCat("qcow2check undo ", second, " ", leaky_)));
  EXPECT_THAT(refused.err, Not(HasSubstr("--force")));
  EXPECT_EQ(Program({"undo", second, leaky_}).exit_code, 0);
  EXPECT_EQ(ReadFile(leaky_), image_.bytes);
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
  ExpectRefused(Program({"undo", "--bogus"}), "--bogus");
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
